/*
 * The store: its folder as a daemon finds it, which generation it reads, what it removes.
 */
#include <dirent.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "daemon/store.h"
#include "tests/suite.h"

#define WINDOW 4
#define FOUND_MAX 8

static struct model *model;
static struct store *store;
static char folder[64], key[HASH_TEXT];

/* What store_open told. */
static struct { char key[HASH_TEXT]; struct generations generations; bool closed; } found[FOUND_MAX];
static size_t n_found;

static int note_found(void *arg, const char *name, const struct generations *generations, bool closed,
		      struct error *err)
{
	(void)arg;
	(void)err;
	ck_assert_uint_lt(n_found, FOUND_MAX);
	memcpy(found[n_found].key, name, HASH_TEXT);
	found[n_found].generations = *generations;
	found[n_found++].closed = closed;
	return 0;
}

static void open_store(void)
{
	struct error err = { .text = "" };

	n_found = 0;
	ck_assert_msg(!store_open(folder, model, WINDOW, note_found, NULL, &store, &err), "%s", err.text);
}

static void close_store(void)
{
	struct error err;

	ck_assert_int_eq(store_close(store, 60000, &err), 0);
	store = NULL;
}

static void setup(void)
{
	struct shape shape = {
		.num_layers = 1, .hidden_size = 4, .d_inner = 8, .num_heads = 2, .head_dim = 4, .n_groups = 1,
		.state_size = 3, .conv_kernel = 2, .gated_norm_groups = 1, .norm_epsilon = 1e-5f, .dt_max = 1
	};
	struct error err;

	ck_assert_int_eq(shape_derive(&shape, &err), 0);
	ck_assert_int_eq(model_random(&shape, 1, &model, &err), 0);
	snprintf(folder, sizeof folder, "/tmp/mamba2d-check-XXXXXX");
	ck_assert_ptr_nonnull(mkdtemp(folder));
	store_key("stream", 6, key);
	open_store();
}

/* Delete every file in the folder. */
static void empty_folder(void)
{
	DIR *dir = opendir(folder);
	struct dirent *entry;

	while ((entry = readdir(dir)))
		unlinkat(dirfd(dir), entry->d_name, 0);
	closedir(dir);
}

static void teardown(void)
{
	close_store();
	empty_folder();
	ck_assert_int_eq(rmdir(folder), 0);
	model_free(model);
}

/* --- the folder --- */

/* The path of generation `number` of the stream with this key; suffix as in the file's name. */
static const char *path(const char *of, unsigned number, const char *suffix)
{
	static char text[256];

	if (number)
		snprintf(text, sizeof text, "%s/%s-%016x%s", folder, of, number, suffix);
	else
		snprintf(text, sizeof text, "%s/%s%s", folder, of, suffix);
	return text;
}

static bool there(unsigned number, const char *suffix)
{
	return access(path(key, number, suffix), F_OK) == 0;
}

static void make_file(const char *name)
{
	FILE *file = fopen(name, "w");

	ck_assert_ptr_nonnull(file);
	fclose(file);
}

/* Flip a bit in the middle of the file. */
static void damage(unsigned number)
{
	FILE *file = fopen(path(key, number, ".safetensors"), "r+");
	int byte;

	ck_assert_ptr_nonnull(file);
	fseek(file, -9, SEEK_END);
	byte = fgetc(file);
	fseek(file, -1, SEEK_CUR);
	fputc(byte ^ 4, file);
	fclose(file);
}

/* --- jobs --- */

static struct state *state_at(uint64_t epoch, uint64_t position)
{
	struct state *state;
	struct error err;

	ck_assert_int_eq(state_new(&model->shape, WINDOW, &state, &err), 0);
	*state = (struct state){
		.stream_size = 6, .stream = "stream", .epoch = epoch, .position = position, .emitted = position,
		.window = WINDOW, .device = "none", .pending_rows = 1, .cache = state->cache, .pending = state->pending,
		.positions = state->positions
	};
	state->positions[0] = position;
	snprintf(state->model, sizeof state->model, "%s", model->fingerprint);
	for (size_t i = 0; i < shape_cache_floats(&model->shape); i++)
		state->cache[i] = (float)position;
	memset(state->pending, 0, model->shape.hidden_size * sizeof *state->pending);
	return state;
}

static void wait_for(struct store_job *job)
{
	struct pollfd pollfd = { .fd = store_fd(store), .events = POLLIN };
	struct store_job *done;

	while (!(done = store_collect(store)))
		ck_assert_int_gt(poll(&pollfd, 1, 60000), 0);
	ck_assert_ptr_eq(done, job);
	ck_assert_ptr_null(store_collect(store));
}

static struct store_job job_of(enum store_task task)
{
	struct store_job job = { .task = task };

	memcpy(job.key, key, sizeof job.key);
	return job;
}

static void do_job(struct store_job *job)
{
	job->owner = job;
	store_submit(store, job);
	wait_for(job);
}

/* Write generation `number`, with epoch 0 and position 10 * number, after others of which all before `from` go. */
static void write_one(unsigned number, unsigned from)
{
	struct store_job job = job_of(STORE_WRITE);

	job.number = number;
	job.state = state_at(0, 10 * number);
	for (unsigned i = 1; i < number; i++)
		generations_add(&job.generations, &(struct generation){ .number = i, .doomed = i < from });
	do_job(&job);
	ck_assert_msg(job.error.code == 0, "%s", job.error.text);
	ck_assert_uint_gt(job.bytes, 0);
	state_free(job.state);
}

/* Read the newest of generations 1 to n, which the caller may have damaged. */
static struct store_job read_one(unsigned n, bool rewinding, uint64_t epoch, uint64_t from)
{
	struct store_job job = job_of(STORE_READ);

	job.state = state_at(99, 99);
	job.rewinding = rewinding;
	job.epoch = epoch;
	job.from = from;
	for (unsigned i = 1; i <= n; i++)
		generations_add(&job.generations, &(struct generation){ .number = i });
	do_job(&job);
	return job;
}

/* It is generation `number` that was read, into the state. */
static void assert_read(struct store_job *job, unsigned number)
{
	ck_assert_msg(job->error.code == 0, "%s", job->error.text);
	ck_assert(job->found);
	ck_assert_uint_eq(job->state->position, 10 * number);
	ck_assert(job->state->cache[0] == (float)(10 * number));
	ck_assert(job->generations.item[number - 1].known);
	ck_assert_uint_eq(job->generations.item[number - 1].emitted, 10 * number);
	ck_assert_uint_eq(job->generations.item[number - 1].reach, 10 * number + 1);
	state_free(job->state);
}

static void assert_error(struct store_job *job, int code, const char *text)
{
	ck_assert_int_eq(job->error.code, code);
	ck_assert_msg(strstr(job->error.text, text) != NULL, "%s", job->error.text);
	ck_assert(!job->found);
	state_free(job->state);
}

/* --- tests --- */

START_TEST(jobs_come_back_in_order)
{
	struct store_job jobs[10];

	for (unsigned i = 0; i < 10; i++) {
		jobs[i] = job_of(i % 2 ? STORE_WRITE : STORE_REMOVE);
		jobs[i].owner = &jobs[i];
		jobs[i].number = 7;
		jobs[i].state = state_at(0, i);
	}
	for (unsigned i = 0; i < 10; i++)
		store_submit(store, &jobs[i]);
	for (unsigned i = 0; i < 10;) {
		struct store_job *done = store_collect(store);

		ck_assert(!done || done == &jobs[i]);
		i += done != NULL;
	}
	for (unsigned i = 0; i < 10; i++)
		state_free(jobs[i].state);
	ck_assert(there(7, ".safetensors"));
}
END_TEST

START_TEST(writing_removes_what_is_doomed)
{
	for (unsigned number = 1; number <= 4; number++)
		write_one(number, number - 1);
	ck_assert(!there(1, ".safetensors") && !there(2, ".safetensors"));
	ck_assert(there(3, ".safetensors") && there(4, ".safetensors"));
}
END_TEST

/* Generation 2, and 1 before it, which could not be removed: a folder stood there. */
static void leave_one_behind(void)
{
	struct store_job job = job_of(STORE_REMOVE);

	ck_assert_int_eq(mkdir(path(key, 1, ".safetensors"), 0700), 0);
	write_one(2, 2);
	do_job(&job);
	ck_assert_int_eq(job.error.code, ERR_SYSTEM);
	ck_assert_int_eq(rmdir(path(key, 1, ".safetensors")), 0);
	make_file(path(key, 1, ".safetensors"));
}

START_TEST(what_stays_goes_with_the_next_write)
{
	leave_one_behind();
	write_one(3, 0);
	ck_assert(!there(1, ".safetensors") && there(2, ".safetensors") && there(3, ".safetensors"));
}
END_TEST

START_TEST(what_stays_goes_with_all_of_the_stream)
{
	struct store_job job = job_of(STORE_REMOVE);

	leave_one_behind();
	generations_add(&job.generations, &(struct generation){ .number = 2 });
	do_job(&job);
	ck_assert_int_eq(job.error.code, 0);
	ck_assert(!there(1, ".safetensors") && !there(2, ".safetensors"));
}
END_TEST

START_TEST(a_failed_write_removes_nothing)
{
	struct store_job job = job_of(STORE_WRITE);

	write_one(1, 0);
	ck_assert_int_eq(mkdir(path(key, 2, ".safetensors"), 0700), 0);
	job.number = 2;
	job.state = state_at(0, 20);
	generations_add(&job.generations, &(struct generation){ .number = 1, .doomed = true });
	do_job(&job);
	ck_assert_int_eq(job.error.code, ERR_SYSTEM);
	ck_assert(there(1, ".safetensors"));
	ck_assert(!there(2, ".safetensors.part"));
	ck_assert_int_eq(rmdir(path(key, 2, ".safetensors")), 0);
	state_free(job.state);
}
END_TEST

/* With the mark beside it the next start would take the stream for closed, and its states for nobody's. */
START_TEST(a_mark_that_stays_fails_the_write)
{
	struct store_job job = job_of(STORE_WRITE);

	write_one(1, 0);
	ck_assert_int_eq(mkdir(path(key, 0, ".closed"), 0700), 0);
	job.number = 2;
	job.state = state_at(0, 20);
	generations_add(&job.generations, &(struct generation){ .number = 1, .doomed = true });
	do_job(&job);
	ck_assert_int_eq(job.error.code, ERR_SYSTEM);
	ck_assert_msg(strstr(job.error.text, ".closed: remove"), "%s", job.error.text);
	ck_assert(there(1, ".safetensors") && !there(2, ".safetensors"));
	ck_assert_int_eq(rmdir(path(key, 0, ".closed")), 0);
	state_free(job.state);
}
END_TEST

START_TEST(the_folder_is_listed)
{
	char second[HASH_TEXT], third[HASH_TEXT];

	store_key("second", 6, second);
	store_key("third", 5, third);
	close_store();
	make_file(path(key, 0x1f, ".safetensors"));
	make_file(path(key, 3, ".safetensors"));
	make_file(path(second, 2, ".safetensors"));
	make_file(path(second, 0, ".closed"));
	make_file(path(third, 0, ".closed"));
	make_file(path(key, 5, ".safetensors.part"));
	make_file(path(key, 6, ".safetensors.damaged"));
	make_file(path(key, 7, ".safetensors~"));
	make_file(path("notes", 0, ".txt"));
	make_file(path("0123", 0, "-0000000000000001.safetensors"));
	open_store();
	ck_assert_uint_eq(n_found, 2);
	for (size_t i = 0; i < n_found; i++) {
		bool first = !strcmp(found[i].key, key);

		ck_assert(first || !strcmp(found[i].key, second));
		ck_assert(found[i].closed == !first);
		if (!first)
			continue;
		ck_assert_uint_eq(found[i].generations.n, 2);
		ck_assert_uint_eq(found[i].generations.item[0].number, 3);
		ck_assert_uint_eq(found[i].generations.item[1].number, 0x1f);
		ck_assert(!found[i].generations.item[0].known && !found[i].generations.item[1].known);
	}
	ck_assert_int_eq(access(path(second, 0, ".closed"), F_OK), 0);
	ck_assert_int_eq(access(path(third, 0, ".closed"), F_OK), -1);
	ck_assert(!there(5, ".safetensors.part"));
	ck_assert(there(6, ".safetensors.damaged"));
	ck_assert_int_eq(access(path("notes", 0, ".txt"), F_OK), 0);
}
END_TEST

START_TEST(more_files_than_there_ever_are)
{
	close_store();
	for (unsigned number = 1; number <= GENERATIONS_MAX + 2; number++)
		make_file(path(key, number, ".safetensors"));
	open_store();
	ck_assert_uint_eq(n_found, 1);
	ck_assert_uint_eq(found[0].generations.n, GENERATIONS_MAX);
	ck_assert(!there(GENERATIONS_MAX / 2 + 1, ".safetensors") && !there(GENERATIONS_MAX / 2 + 2, ".safetensors"));
	for (size_t i = 0; i < GENERATIONS_MAX; i++)
		ck_assert(there((unsigned)found[0].generations.item[i].number, ".safetensors"));
}
END_TEST

START_TEST(one_daemon_has_the_folder)
{
	struct store *other = NULL;
	struct error err = { .text = "" };

	empty_folder(); /* which lets nobody in */
	ck_assert_int_eq(store_open(folder, model, WINDOW, note_found, NULL, &other, &err), ERR_SYSTEM);
	ck_assert_msg(strstr(err.text, "another daemon has it") && strstr(err.text, folder), "%s", err.text);
	close_store();
	open_store();
}
END_TEST

START_TEST(folders_that_cannot_be_used)
{
	struct store *other = NULL;
	struct error err;
	char file[128];

	snprintf(file, sizeof file, "%s/none/none", folder);
	ck_assert_int_eq(store_open(file, model, WINDOW, note_found, NULL, &other, &err), ERR_SYSTEM);
	snprintf(file, sizeof file, "%s/file", folder);
	make_file(file);
	ck_assert_int_eq(store_open(file, model, WINDOW, note_found, NULL, &other, &err), ERR_SYSTEM);
	snprintf(file, sizeof file, "%s/new", folder);
	ck_assert_int_eq(store_open(file, model, WINDOW, note_found, NULL, &other, &err), 0);
	ck_assert_int_eq(store_close(other, 60000, &err), 0);
	ck_assert_int_eq(rmdir(file), 0);
}
END_TEST

START_TEST(the_newest_is_read)
{
	struct store_job job;

	for (unsigned number = 1; number <= 3; number++)
		write_one(number, 0);
	job = read_one(3, false, 5, 0);
	assert_read(&job, 3);
	ck_assert(!job.generations.item[1].known);
}
END_TEST

START_TEST(a_damaged_one_is_put_aside)
{
	struct store_job job;

	for (unsigned number = 1; number <= 3; number++)
		write_one(number, 0);
	damage(3);
	job = read_one(3, false, 0, 0);
	assert_read(&job, 2);
	ck_assert(job.damaged[2] && !job.damaged[1]);
	ck_assert_msg(strstr(job.damage.text, "damaged: checksum"), "%s", job.damage.text);
	ck_assert(!there(3, ".safetensors") && there(3, ".safetensors.damaged"));
	ck_assert_int_eq(unlink(path(key, 2, ".safetensors")), 0);
	job = read_one(2, false, 0, 0);
	assert_read(&job, 1);
	ck_assert(job.damaged[1]);
}
END_TEST

START_TEST(all_damaged)
{
	struct store_job job;

	write_one(1, 0);
	write_one(2, 0);
	damage(1);
	damage(2);
	job = read_one(2, false, 0, 0);
	assert_error(&job, ERR_FORMAT, "damaged");
	ck_assert(there(1, ".safetensors") && there(2, ".safetensors"));
}
END_TEST

START_TEST(another_window_or_what_cannot_be_read_stands_in_the_way)
{
	struct store_job job = job_of(STORE_WRITE);

	write_one(1, 0);
	job.number = 2;
	job.state = state_at(0, 20);
	job.state->window = 5;
	do_job(&job);
	state_free(job.state);
	job = read_one(2, false, 0, 0);
	assert_error(&job, ERR_UNSUPPORTED, "of window 5, the window here is 4");
	ck_assert_int_eq(unlink(path(key, 2, ".safetensors")), 0);
	ck_assert_int_eq(mkdir(path(key, 2, ".safetensors"), 0700), 0);
	job = read_one(2, false, 0, 0);
	assert_error(&job, ERR_SYSTEM, "directory");
	ck_assert(there(1, ".safetensors") && there(2, ".safetensors"));
	ck_assert_int_eq(rmdir(path(key, 2, ".safetensors")), 0);
}
END_TEST

START_TEST(the_state_of_another_stream_under_this_name)
{
	struct store_job job = job_of(STORE_WRITE);

	write_one(1, 0);
	job.number = 2;
	job.state = state_at(0, 20);
	job.state->stream[0] = 'S';
	do_job(&job);
	state_free(job.state);
	job = read_one(2, false, 0, 0);
	assert_error(&job, ERR_UNSUPPORTED, "of another stream");
	ck_assert(there(1, ".safetensors") && there(2, ".safetensors"));
}
END_TEST

START_TEST(rewinding)
{
	struct store_job job;

	for (unsigned number = 1; number <= 3; number++)
		write_one(number, 0);
	job = read_one(3, true, 1, 15); /* the message is of another epoch: the stream as it is */
	assert_read(&job, 3);
	job = read_one(3, true, 0, 30);
	assert_read(&job, 3);
	job = read_one(3, true, 0, 29);
	assert_read(&job, 2);
	ck_assert(job.outrun[2] && !there(3, ".safetensors"));
	ck_assert(there(1, ".safetensors") && there(2, ".safetensors"));
	job = read_one(2, true, 0, 9);
	ck_assert_int_eq(job.error.code, 0);
	ck_assert(!job.found && !there(1, ".safetensors") && !there(2, ".safetensors"));
	state_free(job.state);
}
END_TEST

START_TEST(rewinding_past_damage)
{
	struct store_job job;

	for (unsigned number = 1; number <= 3; number++)
		write_one(number, 0);
	damage(2);
	job = read_one(3, true, 0, 25);
	assert_read(&job, 1);
	ck_assert(job.outrun[2] && job.damaged[1]);
}
END_TEST

START_TEST(closed_streams)
{
	struct store_job job = job_of(STORE_CLOSE);

	write_one(1, 0);
	do_job(&job);
	ck_assert_int_eq(job.error.code, 0);
	ck_assert(there(0, ".closed") && there(1, ".safetensors"));
	write_one(2, 0);
	ck_assert(!there(0, ".closed"));
	do_job(&job);
	job = job_of(STORE_REMOVE);
	generations_add(&job.generations, &(struct generation){ .number = 1 });
	job.number = 2;
	do_job(&job);
	ck_assert_int_eq(job.error.code, 0);
	ck_assert(!there(0, ".closed") && !there(1, ".safetensors") && !there(2, ".safetensors"));
	do_job(&job);
	ck_assert_int_eq(job.error.code, 0);
}
END_TEST

START_TEST(closing_finishes_what_was_handed_over)
{
	struct store_job job = job_of(STORE_CLOSE);

	write_one(1, 0);
	store_submit(store, &job);
	close_store();
	ck_assert(there(0, ".closed"));
}
END_TEST

int main(void)
{
	Suite *suite = suite_create("store");
	TCase *tcase = tcase_create("store");

	tcase_set_timeout(tcase, 60);
	tcase_add_checked_fixture(tcase, setup, teardown);
	tcase_add_test(tcase, jobs_come_back_in_order);
	tcase_add_test(tcase, writing_removes_what_is_doomed);
	tcase_add_test(tcase, what_stays_goes_with_the_next_write);
	tcase_add_test(tcase, what_stays_goes_with_all_of_the_stream);
	tcase_add_test(tcase, a_failed_write_removes_nothing);
	tcase_add_test(tcase, a_mark_that_stays_fails_the_write);
	tcase_add_test(tcase, the_folder_is_listed);
	tcase_add_test(tcase, more_files_than_there_ever_are);
	tcase_add_test(tcase, one_daemon_has_the_folder);
	tcase_add_test(tcase, folders_that_cannot_be_used);
	tcase_add_test(tcase, the_newest_is_read);
	tcase_add_test(tcase, a_damaged_one_is_put_aside);
	tcase_add_test(tcase, all_damaged);
	tcase_add_test(tcase, another_window_or_what_cannot_be_read_stands_in_the_way);
	tcase_add_test(tcase, the_state_of_another_stream_under_this_name);
	tcase_add_test(tcase, rewinding);
	tcase_add_test(tcase, rewinding_past_damage);
	tcase_add_test(tcase, closed_streams);
	tcase_add_test(tcase, closing_finishes_what_was_handed_over);
	suite_add_tcase(suite, tcase);
	return suite_run(suite);
}
