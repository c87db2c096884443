/*
 * State files: what is written comes back, any tool can read it, and whatever a disk does to the bytes is noticed.
 */
#include <fcntl.h>
#include <math.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "daemon/statefile.h"
#include "model/safetensors.h"
#include "tests/suite.h"

#define WINDOW 5
#define MODEL "0123456789abcdef0123456789abcdef"
#define FLIPS 1000
#define CUTS 200

static struct shape shape;
static char folder[32];
static int folder_fd;

static uint32_t random_bits(void)
{
	static uint64_t x = 88172645463325252u;

	x ^= x << 13;
	x ^= x >> 7;
	x ^= x << 17;
	return (uint32_t)(x >> 32);
}

static struct shape small_shape(size_t conv_kernel)
{
	struct shape small = {
		.num_layers = 2, .hidden_size = 6, .d_inner = 12, .num_heads = 3, .head_dim = 4, .n_groups = 1,
		.state_size = 5, .conv_kernel = conv_kernel, .gated_norm_groups = 1, .norm_epsilon = 1e-5f, .dt_max = 1
	};
	struct error err;

	ck_assert_int_eq(shape_derive(&small, &err), 0);
	return small;
}

static void setup(void)
{
	shape = small_shape(4);
	snprintf(folder, sizeof folder, "/tmp/mamba2d-check-XXXXXX");
	ck_assert_ptr_nonnull(mkdtemp(folder));
	folder_fd = open(folder, O_RDONLY | O_DIRECTORY);
	ck_assert_int_ge(folder_fd, 0);
}

static void teardown(void)
{
	unlinkat(folder_fd, "state", 0);
	close(folder_fd);
	ck_assert_msg(rmdir(folder) == 0, "something was left in the folder");
}

static struct state *new_state(const struct shape *of)
{
	struct state *state = NULL;
	struct error err;

	ck_assert_int_eq(state_new(of, WINDOW, &state, &err), 0);
	return state;
}

static struct state *random_state(const struct shape *of, uint64_t pending_rows)
{
	struct state *state = new_state(of);

	state->stream_size = 1 + random_bits() % MESSAGE_STREAM_MAX;
	for (size_t i = 0; i < state->stream_size; i++)
		state->stream[i] = (unsigned char)random_bits();
	state->epoch = random_bits();
	state->position = (uint64_t)random_bits() << 20;
	state->pending_rows = pending_rows;
	state->emitted = state->position + pending_rows / 2;
	state->source_epoch = state->epoch / 2;
	state->source_origin = random_bits();
	state->reply = pending_rows % 2;
	state->got = state->reply ? state->emitted - 1 : 0;
	state->window = WINDOW;
	snprintf(state->model, sizeof state->model, MODEL);
	snprintf(state->device, sizeof state->device, "cpu \"checksum\" plain");
	for (size_t i = 0; i < shape_cache_floats(of); i++)
		state->cache[i] = (float)(int32_t)random_bits() / 65536;
	for (size_t i = 0; i < pending_rows; i++)
		state->positions[i] = state->position + i;
	for (size_t i = 0; i < pending_rows * of->hidden_size; i++)
		state->pending[i] = (float)(int32_t)random_bits() / 65536;
	return state;
}

static bool same(const struct state *a, const struct state *b)
{
	size_t cache_bytes = shape_cache_floats(&shape) * sizeof(float);

	return a->stream_size == b->stream_size && !memcmp(a->stream, b->stream, a->stream_size) &&
	       a->epoch == b->epoch && a->position == b->position && a->emitted == b->emitted &&
	       a->source_epoch == b->source_epoch && a->source_origin == b->source_origin && a->reply == b->reply &&
	       a->got == b->got && a->window == b->window && !strcmp(a->model, b->model) &&
	       !strcmp(a->device, b->device) && !memcmp(a->cache, b->cache, cache_bytes) &&
	       a->pending_rows == b->pending_rows &&
	       !memcmp(a->positions, b->positions, a->pending_rows * sizeof *a->positions) &&
	       !memcmp(a->pending, b->pending, a->pending_rows * shape.hidden_size * sizeof(float));
}

static char *encode(const struct state *state, size_t *ret_size)
{
	void *bytes = NULL;
	struct error err;

	ck_assert_int_eq(statefile_encode(&shape, state, &bytes, ret_size, &err), 0);
	return bytes;
}

static size_t header_size(const char *bytes)
{
	uint64_t size;

	memcpy(&size, bytes, sizeof size);
	return size + sizeof size;
}

static int decode(const void *bytes, size_t size, struct state *state, struct error *err)
{
	return statefile_decode(bytes, size, "NAME", true, &shape, MODEL, WINDOW, state, err);
}

/* Decoding fails with this code and a text that says so. */
static void assert_refused(const void *bytes, size_t size, int code, const char *text)
{
	struct state *state = new_state(&shape);
	struct error err = { .text = "" };

	ck_assert_int_eq(decode(bytes, size, state, &err), code);
	ck_assert_msg(strstr(err.text, text) && strstr(err.text, "NAME"), "\"%s\", expected \"%s\"", err.text, text);
	state_free(state);
}

static void write_and_read(uint64_t pending)
{
	struct state *state = random_state(&shape, pending), *read = new_state(&shape);
	struct error err = { .text = "" };
	char *bytes;
	size_t size;

	ck_assert_int_eq(statefile_write(folder_fd, "state", &shape, state, &err), 0);
	ck_assert_msg(!statefile_read(folder_fd, "state", &shape, MODEL, WINDOW, read, &err), "%s", err.text);
	ck_assert(same(state, read));
	bytes = encode(state, &size);
	memset(read->cache, 0, sizeof *read->cache);
	ck_assert_int_eq(decode(bytes, size, read, &err), 0);
	ck_assert(same(state, read));
	free(bytes);
	state_free(state);
	state_free(read);
}

START_TEST(what_is_written_is_read)
{
	for (uint64_t pending = 0; pending < WINDOW; pending++)
		write_and_read(pending);
}
END_TEST

/* Rows that were skipped leave holes between those of the unfinished window. */
START_TEST(positions_with_holes_are_read)
{
	struct state *state = random_state(&shape, 4), *read = new_state(&shape);
	struct error err = { .text = "" };
	size_t size;
	char *bytes;

	for (size_t i = 1; i < 4; i++)
		state->positions[i] = state->positions[i - 1] + (i == 2 ? 1 : 1000);
	ck_assert_uint_eq(state_next(state), state->position + 2002);
	bytes = encode(state, &size);
	ck_assert_msg(!decode(bytes, size, read, &err), "%s", err.text);
	ck_assert(same(state, read));
	free(bytes);
	state->positions[3] = state->positions[2];
	bytes = encode(state, &size);
	assert_refused(bytes, size, ERR_FORMAT, "expected 4 rising numbers");
	free(bytes);
	state_free(state);
	state_free(read);
}
END_TEST

/* Of a cache this large all but the last bytes are written past the page cache, where the file system can. */
START_TEST(a_large_cache_is_read)
{
	struct error err;

	shape.state_size = 8191;
	ck_assert_int_eq(shape_derive(&shape, &err), 0);
	write_and_read(3);
}
END_TEST

static void assert_tensor(const struct safetensors *file, const char *name, const void *data, size_t rank,
			  const size_t *sizes)
{
	const struct safetensor *tensor = safetensors_find(file, name);

	ck_assert_msg(tensor != NULL, "%s", name);
	ck_assert_str_eq(tensor->format, "F32");
	ck_assert_uint_eq(tensor->rank, rank);
	ck_assert_mem_eq(tensor->shape, sizes, rank * sizeof *sizes);
	ck_assert_mem_eq(tensor->data, data, tensor->size);
}

static void assert_number(const struct safetensors *file, const char *key, uint64_t value)
{
	char text[32];

	snprintf(text, sizeof text, "%llu", (unsigned long long)value);
	ck_assert_pstr_eq(safetensors_metadata(file, key), text);
}

/* PROTOCOL.md, "State files", word for word. */
START_TEST(any_tool_can_read_it)
{
	struct state *state = random_state(&shape, 3);
	const float *at = state->cache;
	struct safetensors *file;
	struct error err = { .text = "" };
	char path[64], hex[2 * MESSAGE_STREAM_MAX + 1];

	snprintf(path, sizeof path, "%s/state", folder);
	ck_assert_int_eq(statefile_write(folder_fd, "state", &shape, state, &err), 0);
	ck_assert_msg(!safetensors_open(path, &file, &err), "%s", err.text);
	ck_assert_uint_eq(safetensors_count(file), 5);
	for (size_t layer = 0; layer < shape.num_layers; layer++) {
		char conv[48], ssm[48];

		snprintf(conv, sizeof conv, "layers.%zu.conv_state", layer);
		snprintf(ssm, sizeof ssm, "layers.%zu.ssm_state", layer);
		assert_tensor(file, conv, at, 2, (size_t[]){ shape.conv_dim, shape.conv_kernel - 1 });
		at += shape_conv_state_floats(&shape);
		assert_tensor(file, ssm, at, 3, (size_t[]){ shape.num_heads, shape.head_dim, shape.state_size });
		at += shape_ssm_state_floats(&shape);
	}
	assert_tensor(file, "pending", state->pending, 2, (size_t[]){ 3, shape.hidden_size });
	for (size_t i = 0; i < state->stream_size; i++)
		snprintf(hex + 2 * i, 3, "%02x", state->stream[i]);
	ck_assert_pstr_eq(safetensors_metadata(file, "format"), "mamba2d-state-1");
	ck_assert_pstr_eq(safetensors_metadata(file, "stream"), hex);
	ck_assert_pstr_eq(safetensors_metadata(file, "model"), MODEL);
	ck_assert_pstr_eq(safetensors_metadata(file, "device"), state->device);
	assert_number(file, "epoch", state->epoch);
	assert_number(file, "position", state->position);
	assert_number(file, "emitted", state->emitted);
	assert_number(file, "window", WINDOW);
	assert_number(file, "got", state->got);
	ck_assert_uint_eq(strlen(safetensors_metadata(file, "checksum")), HASH_TEXT - 1);
	safetensors_close(file);
	state_free(state);
}
END_TEST

START_TEST(a_state_of_something_else_is_refused)
{
	const struct shape other = small_shape(3);
	struct state *state = random_state(&shape, 2), *foreign = random_state(&other, 2);
	void *bytes;
	size_t size;
	struct error err;

	state->model[0] = 'x';
	bytes = encode(state, &size);
	assert_refused(bytes, size, ERR_UNSUPPORTED, "of model x123456789abcdef0123456789abcdef, the model here is");
	free(bytes);
	state->model[0] = MODEL[0];
	state->window = 6;
	bytes = encode(state, &size);
	assert_refused(bytes, size, ERR_UNSUPPORTED, "of window 6, the window here is 5");
	free(bytes);
	ck_assert_int_eq(statefile_encode(&other, foreign, &bytes, &size, &err), 0);
	assert_refused(bytes, size, ERR_UNSUPPORTED, "layers.0.conv_state");
	free(bytes);
	state_free(state);
	state_free(foreign);
}
END_TEST

/* The digits of the checksum among the bytes. */
static char *digits(char *bytes)
{
	static const char key[] = "\"checksum\":\"";
	char *at = memmem(bytes, header_size(bytes), key, sizeof key - 1);

	ck_assert_ptr_nonnull(at);
	return at + sizeof key - 1;
}

/* Write `to` over the header where `from` stands, and make the checksum right again. */
static void forge(char *bytes, size_t size, const char *from, const char *to)
{
	char *at = memmem(bytes, header_size(bytes), from, strlen(from)), text[HASH_TEXT];
	struct hash *hash;

	ck_assert_ptr_nonnull(at);
	memcpy(at, to, strlen(to));
	memset(digits(bytes), '0', HASH_TEXT - 1);
	ck_assert_int_eq(hash_new(&hash, NULL), 0);
	hash_update(hash, bytes, size);
	hash_text(hash, text);
	hash_free(hash);
	memcpy(digits(bytes), text, HASH_TEXT - 1);
}

START_TEST(sound_but_wrong)
{
	static const struct { const char *from, *to; int code; const char *text; } forgeries[] = {
		{ "mamba2d-state-1", "mamba2d-state-2", ERR_UNSUPPORTED,
		  "format mamba2d-state-2, expected mamba2d-state-1" },
		{ "\"format\"", "\"tamrof\"", ERR_UNSUPPORTED, "format missing, expected mamba2d-state-1" },
		{ "\"model\"", "\"ledom\"", ERR_UNSUPPORTED, "of model unknown" },
		{ "\"window\":\"5\"", "\"window\":\"-\"", ERR_FORMAT, "window" },
		{ "\"emitted\":\"", "\"emitted\":\"-", ERR_FORMAT, "emitted" },
		{ "\"position\":\"", "\"position\":\" ", ERR_FORMAT, "position" },
		{ "\"epoch\"", "\"hcope\"", ERR_FORMAT, "epoch" },
		{ "\"source_origin\":\"", "\"source_origin\":\"-", ERR_FORMAT, "source_origin" },
		{ "\"stream\":\"", "\"stream\":\"g", ERR_FORMAT, "stream" },
		{ "\"pending\"", "\"gnidnep\"", ERR_FORMAT, "tensor pending is missing" },
		{ "layers.1.ssm_state", "layers.7.ssm_state", ERR_FORMAT, "tensor layers.1.ssm_state is missing" },
	};

	for (size_t i = 0; i < sizeof forgeries / sizeof *forgeries; i++) {
		struct state *state = random_state(&shape, 4);
		size_t size;
		char *bytes = encode(state, &size);

		forge(bytes, size, forgeries[i].from, forgeries[i].to);
		assert_refused(bytes, size, forgeries[i].code, forgeries[i].text);
		free(bytes);
		state_free(state);
	}
}
END_TEST

/* A later version may have another checksum, or none: its files are not damaged. */
START_TEST(of_a_later_version)
{
	static const struct { const char *format; int code; const char *text; } formats[] = {
		{ "mamba2d-state-2", ERR_UNSUPPORTED, "format mamba2d-state-2, expected mamba2d-state-1" },
		{ "mamba2d-state-9", ERR_UNSUPPORTED, "format mamba2d-state-9, expected mamba2d-state-1" },
		{ "mamba2d-state-q", ERR_FORMAT, "damaged" },
		{ "mamba2d-stat%-2", ERR_FORMAT, "damaged" },
	};

	for (size_t i = 0; i < sizeof formats / sizeof *formats; i++) {
		struct state *state = random_state(&shape, 2);
		size_t size;
		char *bytes = encode(state, &size), *at = memmem(bytes, header_size(bytes), "mamba2d-state-1", 15);

		memcpy(at, formats[i].format, 15);
		assert_refused(bytes, size, formats[i].code, formats[i].text);
		free(bytes);
		state_free(state);
	}
}
END_TEST

START_TEST(without_a_checksum)
{
	struct state *state = random_state(&shape, 2), *read = new_state(&shape);
	struct error err = { .text = "" };
	size_t size;
	char *bytes = encode(state, &size);

	memcpy(digits(bytes) - strlen("checksum\":\""), "no_check", 8);
	assert_refused(bytes, size, ERR_FORMAT, "no checksum");
	ck_assert_msg(!statefile_decode(bytes, size, "", false, &shape, MODEL, WINDOW, read, &err), "%s", err.text);
	ck_assert(same(state, read));
	free(bytes);
	bytes = encode(state, &size);
	digits(bytes)[3] ^= 1;
	ck_assert_int_eq(statefile_decode(bytes, size, "", false, &shape, MODEL, WINDOW, read, &err), ERR_FORMAT);
	free(bytes);
	state_free(state);
	state_free(read);
}
END_TEST

/* Numbers that somebody brings are finite; what the daemon wrote comes back as it was. */
START_TEST(numbers_that_are_not_finite)
{
	for (size_t i = 0; i < 4; i++) {
		struct state *state = random_state(&shape, 2), *read = new_state(&shape);
		struct error err = { .text = "" };
		size_t size;
		char *bytes;

		(i % 2 ? state->pending : state->cache)[7] = i / 2 ? NAN : INFINITY;
		bytes = encode(state, &size);
		ck_assert_int_eq(decode(bytes, size, read, &err), 0);
		ck_assert(same(state, read));
		ck_assert_int_eq(statefile_decode(bytes, size, "", false, &shape, MODEL, WINDOW, read, &err),
				 ERR_FORMAT);
		ck_assert_msg(strstr(err.text, i % 2 ? "tensor pending: not all" : "conv_state: not all"), "%s",
			      err.text);
		free(bytes);
		state_free(state);
		state_free(read);
	}
}
END_TEST

START_TEST(emitted_before_it_was_received)
{
	for (uint64_t pending = 0; pending < WINDOW; pending++) {
		struct state *state = random_state(&shape, pending), *read = new_state(&shape);
		struct error err = { .text = "" };
		size_t size;
		char *bytes;

		state->emitted = state_next(state);
		bytes = encode(state, &size);
		ck_assert_msg(!decode(bytes, size, read, &err), "%s", err.text);
		free(bytes);
		state->emitted++;
		bytes = encode(state, &size);
		assert_refused(bytes, size, ERR_FORMAT, "metadata emitted: expected at most");
		free(bytes);
		state_free(state);
		state_free(read);
	}
}
END_TEST

START_TEST(a_window_of_pending_rows)
{
	struct state *state = random_state(&shape, WINDOW - 1);
	struct error err;
	size_t size;
	char *bytes;

	state->pending_rows = WINDOW; /* which its buffer holds */
	state->positions[WINDOW - 1] = state->positions[WINDOW - 2] + 1;
	memset(state->pending, 0, WINDOW * shape.hidden_size * sizeof *state->pending);
	bytes = encode(state, &size);
	assert_refused(bytes, size, ERR_FORMAT, "5 pending rows, expected fewer than a window");
	ck_assert_int_eq(statefile_decode(bytes, size, "", true, &shape, MODEL, WINDOW + 1, state, &err),
			 ERR_UNSUPPORTED);
	free(bytes);
	state_free(state);
}
END_TEST

/*
 * The damaged bytes decode to the state that was written, or are known to be damaged: or, where the version's digit
 * became another, taken for a state of that version, which is not touched either.
 */
static void assert_noticed(const char *bytes, size_t size, const struct state *state)
{
	char *copy = malloc(size + 1); /* of just this size, so that reading beyond is noticed */
	struct state *read = new_state(&shape);
	struct error err = { .text = "" };
	int rc;

	memcpy(copy, bytes, size);
	copy = realloc(copy, size ? size : 1);
	rc = decode(copy, size, read, &err);
	if (rc)
		ck_assert_msg(rc == ERR_FORMAT || (rc == ERR_UNSUPPORTED && strstr(err.text, "format mamba2d-state-")),
			      "%d: %s", rc, err.text);
	else
		ck_assert(same(state, read));
	free(copy);
	state_free(read);
}

START_TEST(every_flipped_bit_is_noticed)
{
	struct state *state = random_state(&shape, 4);
	size_t size, head;
	char *bytes = encode(state, &size);

	head = header_size(bytes);
	for (size_t i = 0; i < 8 * head + FLIPS; i++) {
		size_t bit = i < 8 * head ? i : 8 * head + random_bits() % (8 * (size - head));

		bytes[bit / 8] = (char)(bytes[bit / 8] ^ 1 << bit % 8);
		assert_noticed(bytes, size, state);
		bytes[bit / 8] = (char)(bytes[bit / 8] ^ 1 << bit % 8);
	}
	free(bytes);
	state_free(state);
}
END_TEST

START_TEST(every_cut_is_noticed)
{
	struct state *state = random_state(&shape, 4), *read = new_state(&shape);
	struct error err;
	size_t size, head;
	char *bytes = encode(state, &size);

	head = header_size(bytes);
	for (size_t i = 0; i < head + CUTS; i++) {
		size_t length = i < head ? i : head + random_bits() % (size - head);

		ck_assert_int_eq(decode(bytes, length, read, &err), ERR_FORMAT);
		assert_noticed(bytes, length, state);
	}
	bytes = realloc(bytes, size + 100);
	memset(bytes + size, 0, 100);
	for (size_t more = 1; more <= 100; more++)
		ck_assert_int_eq(decode(bytes, size + more, read, &err), ERR_FORMAT);
	free(bytes);
	state_free(state);
	state_free(read);
}
END_TEST

/* What a crash may leave of a file that was never synced: holes of zeros. */
START_TEST(every_hole_is_noticed)
{
	struct state *state = random_state(&shape, 4);
	size_t size;
	char *bytes = encode(state, &size);

	for (size_t i = 0; i < CUTS; i++) {
		size_t at = random_bits() % size, length = 1 + random_bits() % (size - at);
		char *copy = malloc(size);

		memcpy(copy, bytes, size);
		memset(copy + at, 0, length);
		assert_noticed(copy, size, state);
		free(copy);
	}
	free(bytes);
	state_free(state);
}
END_TEST

START_TEST(a_file_that_cannot_be_written_or_read)
{
	struct state *state = random_state(&shape, 1);
	struct error err = { .text = "" };
	char path[64];

	ck_assert_int_eq(statefile_read(folder_fd, "state", &shape, MODEL, WINDOW, state, &err), ERR_FORMAT);
	ck_assert_str_eq(err.text, "state: missing");
	ck_assert_int_eq(statefile_write(-1, "state", &shape, state, &err), ERR_SYSTEM);
	snprintf(path, sizeof path, "%s/state", folder);
	ck_assert_int_eq(mkdirat(folder_fd, "state", 0700), 0);
	ck_assert_int_eq(statefile_read(folder_fd, "state", &shape, MODEL, WINDOW, state, &err), ERR_SYSTEM);
	ck_assert_int_eq(statefile_write(folder_fd, "state", &shape, state, &err), ERR_SYSTEM);
	ck_assert_int_eq(rmdir(path), 0); /* and the temporary file is gone: see teardown */
	state_free(state);
}
END_TEST

int main(void)
{
	Suite *suite = suite_create("statefile");
	TCase *tcase = tcase_create("statefile");

	tcase_set_timeout(tcase, 60);
	tcase_add_checked_fixture(tcase, setup, teardown);
	tcase_add_test(tcase, what_is_written_is_read);
	tcase_add_test(tcase, positions_with_holes_are_read);
	tcase_add_test(tcase, a_large_cache_is_read);
	tcase_add_test(tcase, any_tool_can_read_it);
	tcase_add_test(tcase, a_state_of_something_else_is_refused);
	tcase_add_test(tcase, sound_but_wrong);
	tcase_add_test(tcase, of_a_later_version);
	tcase_add_test(tcase, without_a_checksum);
	tcase_add_test(tcase, numbers_that_are_not_finite);
	tcase_add_test(tcase, emitted_before_it_was_received);
	tcase_add_test(tcase, a_window_of_pending_rows);
	tcase_add_test(tcase, every_flipped_bit_is_noticed);
	tcase_add_test(tcase, every_cut_is_noticed);
	tcase_add_test(tcase, every_hole_is_noticed);
	tcase_add_test(tcase, a_file_that_cannot_be_written_or_read);
	suite_add_tcase(suite, tcase);
	return suite_run(suite);
}
