/* The store's thread and its folder: see store.h. */
#include "daemon/store.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define KEY_CHARS (HASH_TEXT - 1)
#define NUMBER_CHARS 16
#define STATE_SUFFIX ".safetensors"
#define CLOSED_SUFFIX ".closed"
#define FILE_NAME 80

/* A state that had to go and could not yet. */
struct stray {
	struct stray *next;
	char key[HASH_TEXT];
	uint64_t number;
};

struct store {
	const struct model *model;
	size_t window;
	int folder, fd;
	pthread_t thread;
	pthread_mutex_t lock;
	pthread_cond_t changed;
	struct store_job *handed, **last_handed, *done, **last_done;
	struct stray *strays; /* the thread's own */
	bool stop, stopped;
};

void store_key(const void *id, size_t size, char ret_key[HASH_TEXT])
{
	hash_bytes(id, size, ret_key);
}

static void state_name(const char *key, uint64_t number, char name[FILE_NAME])
{
	snprintf(name, FILE_NAME, "%s-%016" PRIx64 STATE_SUFFIX, key, number);
}

static void mark_name(const char *key, char name[FILE_NAME])
{
	snprintf(name, FILE_NAME, "%s" CLOSED_SUFFIX, key);
}

/* --- the tasks --- */

static uint64_t now_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

static int remove_generation(struct store *store, const char *key, uint64_t number, struct error *err)
{
	char name[FILE_NAME];

	state_name(key, number, name);
	return unlinkat(store->folder, name, 0) && errno != ENOENT ? error_system(err, "%s: remove", name) : 0;
}

/* Remove a state that nobody counts on any more: now, or with the stream's next write or its removal. */
static void discard(struct store *store, const char *key, uint64_t number)
{
	struct stray *stray = remove_generation(store, key, number, NULL) ? malloc(sizeof *stray) : NULL;

	if (!stray)
		return;
	*stray = (struct stray){ .next = store->strays, .number = number };
	memcpy(stray->key, key, sizeof stray->key);
	store->strays = stray;
}

static int remove_strays(struct store *store, const char *key, struct error *err)
{
	for (struct stray **at = &store->strays, *stray; (stray = *at);) {
		if (strcmp(stray->key, key)) {
			at = &stray->next;
			continue;
		}
		if (remove_generation(store, key, stray->number, err))
			return ERR_SYSTEM;
		*at = stray->next;
		free(stray);
	}
	return 0;
}

static int remove_mark(struct store *store, const char *key, struct error *err)
{
	char name[FILE_NAME];

	mark_name(key, name);
	return unlinkat(store->folder, name, 0) && errno != ENOENT ? error_system(err, "%s: remove", name) : 0;
}

static void task_write(struct store *store, struct store_job *job)
{
	const struct shape *shape = &store->model->shape;
	char name[FILE_NAME];
	uint64_t start = now_ns();

	state_name(job->key, job->number, name);
	/* a stream that is saved is not closed: its newer state never stands beside a mark, which that fsync ends */
	if (remove_mark(store, job->key, &job->error))
		return;
	if (statefile_write(store->folder, name, shape, job->state, &job->error)) {
		discard(store, job->key, job->number);
		return;
	}
	remove_strays(store, job->key, NULL);
	for (size_t i = 0; i < job->generations.n; i++)
		if (job->generations.item[i].doomed)
			discard(store, job->key, job->generations.item[i].number);
	job->bytes = (shape_cache_floats(shape) + job->state->pending_rows * shape->hidden_size) * sizeof(float);
	job->ns = now_ns() - start;
}

/* Read one generation into the job's state and note what it says. */
static int read_generation(struct store *store, struct store_job *job, struct generation *generation, struct error *err)
{
	char name[FILE_NAME], key[HASH_TEXT];
	int rc;

	state_name(job->key, generation->number, name);
	rc = statefile_read(store->folder, name, &store->model->shape, store->model->fingerprint, store->window,
			    job->state, err);
	if (rc)
		return rc;
	store_key(job->state->stream, job->state->stream_size, key);
	if (strcmp(key, job->key))
		return error_set(err, ERR_UNSUPPORTED, "%s: of another stream, by its metadata", name);
	generation->known = true;
	generation->epoch = job->state->epoch;
	generation->reach = state_next(job->state);
	generation->emitted = job->state->emitted;
	return 0;
}

/*
 * A sound one was found: put damaged files aside, where nobody takes them for states any more, and remove states that
 * are ahead of one to which the stream is rewound.
 */
static void clear_away(struct store *store, const struct store_job *job)
{
	char name[FILE_NAME], aside[FILE_NAME + 8];

	for (size_t i = 0; i < job->generations.n; i++) {
		const uint64_t number = job->generations.item[i].number;

		state_name(job->key, number, name);
		snprintf(aside, sizeof aside, "%s.damaged", name);
		if (job->damaged[i])
			renameat(store->folder, name, store->folder, aside);
		else if (job->outrun[i])
			discard(store, job->key, number);
	}
}

/*
 * Only damage makes an older generation do.  One of another model, or one that cannot be read just now, stands in the
 * way: the stream must not silently go on from before what was promised.
 */
static void task_read(struct store *store, struct store_job *job)
{
	bool sound = false;

	for (size_t i = job->generations.n; i-- > 0 && !job->found;) {
		struct generation *generation = &job->generations.item[i];
		int rc = read_generation(store, job, generation, &job->error);

		if (rc == ERR_FORMAT) {
			job->damaged[i] = true;
			job->damage = job->error;
			continue;
		}
		if (rc)
			return;
		if (job->rewinding && !job->epoch_known && !sound && generation->epoch != job->epoch)
			job->rewinding = false; /* the message is of another epoch: the loop will see to it */
		sound = true;
		job->found = !job->rewinding || generation_suits(generation, job->epoch, job->from);
		job->outrun[i] = !job->found && generation->epoch == job->epoch;
	}
	if (!sound)
		return;
	job->error.code = 0;
	clear_away(store, job);
}

static void task_remove(struct store *store, struct store_job *job)
{
	if (remove_strays(store, job->key, &job->error))
		return;
	for (size_t i = 0; i < job->generations.n; i++)
		if (remove_generation(store, job->key, job->generations.item[i].number, &job->error))
			return;
	if (job->number && remove_generation(store, job->key, job->number, &job->error))
		return;
	if (!remove_mark(store, job->key, &job->error) && fsync(store->folder))
		error_system(&job->error, "%s: fsync of the folder", job->key);
}

static void task_close(struct store *store, struct store_job *job)
{
	char name[FILE_NAME];
	int fd;

	mark_name(job->key, name);
	fd = openat(store->folder, name, O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
	if (fd < 0 || close(fd) || fsync(store->folder))
		error_system(&job->error, "%s", name);
}

static void *store_run(void *arg)
{
	static void (*const tasks[])(struct store *store, struct store_job *job) = {
		[STORE_WRITE] = task_write, [STORE_READ] = task_read, [STORE_REMOVE] = task_remove,
		[STORE_CLOSE] = task_close
	};
	struct store *store = arg;
	uint64_t one = 1;

	pthread_mutex_lock(&store->lock);
	for (;;) {
		struct store_job *job;

		while (!store->handed && !store->stop)
			pthread_cond_wait(&store->changed, &store->lock);
		job = store->handed;
		if (!job)
			break;
		store->handed = job->next;
		if (!store->handed)
			store->last_handed = &store->handed;
		pthread_mutex_unlock(&store->lock);
		tasks[job->task](store, job);
		pthread_mutex_lock(&store->lock);
		job->next = NULL;
		*store->last_done = job;
		store->last_done = &job->next;
		while (write(store->fd, &one, sizeof one) < 0 && errno == EINTR)
			;
	}
	store->stopped = true;
	pthread_cond_signal(&store->changed);
	pthread_mutex_unlock(&store->lock);
	return NULL;
}

/* --- the folder --- */

/* One file of the folder: of which stream, and which generation or the mark of a closed one. */
struct found {
	char key[HASH_TEXT];
	bool closed;
	uint64_t number;
};

static bool parse_name(const char *name, struct found *found)
{
	char *end;

	if (strlen(name) <= KEY_CHARS || strspn(name, "0123456789abcdef") < KEY_CHARS)
		return false;
	*found = (struct found){ .closed = !strcmp(name + KEY_CHARS, CLOSED_SUFFIX) };
	memcpy(found->key, name, KEY_CHARS);
	if (found->closed)
		return true;
	if (name[KEY_CHARS] != '-')
		return false;
	found->number = strtoull(name + KEY_CHARS + 1, &end, 16);
	return end == name + KEY_CHARS + 1 + NUMBER_CHARS && !strcmp(end, STATE_SUFFIX);
}

static int compare_found(const void *a, const void *b)
{
	const struct found *x = a, *y = b;
	int order = strcmp(x->key, y->key);

	return order ? order : (x->number > y->number) - (x->number < y->number);
}

static int list_folder(int folder, struct found **ret_files, size_t *ret_n, struct error *err)
{
	int fd = dup(folder), rc;
	DIR *dir = fd < 0 ? NULL : fdopendir(fd);
	struct found *files = NULL;
	size_t n = 0, capacity = 0;
	struct dirent *entry;

	if (!dir) {
		if (fd >= 0)
			close(fd);
		return error_system(err, "state folder");
	}
	while (errno = 0, entry = readdir(dir)) {
		size_t length = strlen(entry->d_name);

		if (length > 5 && !strcmp(entry->d_name + length - 5, ".part"))
			unlinkat(folder, entry->d_name, 0);
		if (n == capacity) {
			struct found *grown;

			capacity = capacity ? 2 * capacity : 1024;
			grown = realloc(files, capacity * sizeof *grown);
			if (!grown) {
				free(files);
				closedir(dir);
				return error_memory(err, "list of state files");
			}
			files = grown;
		}
		n += parse_name(entry->d_name, &files[n]);
	}
	rc = errno ? error_system(err, "state.dir: its files cannot be listed") : 0; /* what was told must be found */
	closedir(dir);
	if (rc) {
		free(files);
		return rc;
	}
	if (n)
		qsort(files, n, sizeof *files, compare_found);
	*ret_files = files;
	*ret_n = n;
	return 0;
}

/* Tell found of each stream once, with its generations.  A mark without any is what a removal left. */
static int report(struct store *store, const struct found *files, size_t n, store_found *found, void *arg,
		  struct error *err)
{
	for (size_t i = 0; i < n;) {
		struct generations generations = { .n = 0 };
		const char *key = files[i].key;
		bool closed = false;
		uint64_t surplus;
		char name[FILE_NAME];
		int rc;

		for (; i < n && !strcmp(files[i].key, key); i++) {
			closed |= files[i].closed;
			if (files[i].closed)
				continue;
			surplus = generations_surplus(&generations);
			if (surplus) { /* killed again and again between a write and the removals behind it */
				discard(store, key, surplus);
				generations_remove(&generations, surplus);
			}
			generations_add(&generations, &(struct generation){ .number = files[i].number });
		}
		if (!generations.n) {
			mark_name(key, name);
			unlinkat(store->folder, name, 0);
			continue;
		}
		rc = found(arg, key, &generations, closed, err);
		if (rc)
			return rc;
	}
	return 0;
}

static int open_folder(struct store *store, const char *folder, struct error *err)
{
	if (mkdir(folder, 0700) && errno != EEXIST)
		return error_system(err, "state.dir: %s: cannot be made", folder);
	store->folder = open(folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (store->folder < 0)
		return error_system(err, "state.dir: %s", folder);
	if (flock(store->folder, LOCK_EX | LOCK_NB)) /* itself: a file in it might be deleted */
		return errno != EWOULDBLOCK ? error_system(err, "state.dir: %s: lock", folder) :
		       error_set(err, ERR_SYSTEM, "state.dir: %s: another daemon has it", folder);
	return 0;
}

static void free_store(struct store *store)
{
	for (struct stray *stray = store->strays, *next; stray; stray = next) {
		next = stray->next;
		free(stray);
	}
	if (store->fd >= 0)
		close(store->fd);
	if (store->folder >= 0)
		close(store->folder);
	pthread_cond_destroy(&store->changed);
	pthread_mutex_destroy(&store->lock);
	free(store);
}

/* A condition whose waits end by the clock that nobody sets. */
static void init_condition(pthread_cond_t *condition)
{
	pthread_condattr_t attributes;

	pthread_condattr_init(&attributes);
	pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
	pthread_cond_init(condition, &attributes);
	pthread_condattr_destroy(&attributes);
}

int store_open(const char *folder, const struct model *model, size_t window, store_found *found, void *arg,
	       struct store **ret_store, struct error *err)
{
	struct store *store = calloc(1, sizeof *store);
	struct found *files = NULL;
	size_t n = 0;
	int rc;

	if (!store)
		return error_memory(err, "store");
	*store = (struct store){ .model = model, .window = window, .folder = -1, .fd = -1 };
	pthread_mutex_init(&store->lock, NULL);
	init_condition(&store->changed);
	store->last_handed = &store->handed;
	store->last_done = &store->done;
	if ((rc = open_folder(store, folder, err)) || (rc = list_folder(store->folder, &files, &n, err)) ||
	    (rc = report(store, files, n, found, arg, err)))
		goto fail;
	store->fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	errno = store->fd < 0 ? errno : pthread_create(&store->thread, NULL, store_run, store);
	if (store->fd < 0 || errno) {
		rc = error_system(err, "store");
		goto fail;
	}
	pthread_setname_np(store->thread, "store");
	free(files);
	*ret_store = store;
	return 0;
fail:
	free(files);
	free_store(store);
	return rc;
}

/* Let the thread end.  false: it has not by then. */
static bool stop_thread(struct store *store, uint64_t until_ns)
{
	const struct timespec until = {
		.tv_sec = (time_t)(until_ns / 1000000000u), .tv_nsec = (long)(until_ns % 1000000000u)
	};
	bool stopped;

	pthread_mutex_lock(&store->lock);
	store->stop = true;
	pthread_cond_signal(&store->changed);
	while (!store->stopped && pthread_cond_timedwait(&store->changed, &store->lock, &until) != ETIMEDOUT)
		;
	stopped = store->stopped;
	pthread_mutex_unlock(&store->lock);
	return stopped;
}

int store_close(struct store *store, int timeout_ms, struct error *err)
{
	if (!store)
		return 0;
	if (!stop_thread(store, now_ns() + (uint64_t)timeout_ms * 1000000u))
		return error_set(err, ERR_SYSTEM, "the disk does not answer");
	pthread_join(store->thread, NULL);
	free_store(store);
	return 0;
}

void store_submit(struct store *store, struct store_job *job)
{
	pthread_mutex_lock(&store->lock);
	job->next = NULL;
	*store->last_handed = job;
	store->last_handed = &job->next;
	pthread_cond_signal(&store->changed);
	pthread_mutex_unlock(&store->lock);
}

int store_fd(const struct store *store)
{
	return store->fd;
}

struct store_job *store_collect(struct store *store)
{
	struct store_job *job;
	uint64_t count;

	pthread_mutex_lock(&store->lock);
	job = store->done;
	if (job)
		store->done = job->next;
	if (!store->done) {
		store->last_done = &store->done;
		if (read(store->fd, &count, sizeof count) < 0)
			count = 0; /* nothing to read: fine */
	}
	pthread_mutex_unlock(&store->lock);
	return job;
}
