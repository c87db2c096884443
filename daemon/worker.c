/*
 * The worker: see worker.h.  It has as many threads as batches may be under way.  Each takes the next job, starts it
 * when those before it are started, waits for it when those before it are finished, and tells the loop; so one batch is
 * started while an older one is waited for, and no job ever overtakes another.
 *
 * On an idle device a batch of one window that only has to be started is started by the loop itself: handing it over is
 * all that the window would wait for.  Larger ones have time for that, and the loop has better things to do.
 */
#include "daemon/worker.h"

#include <assert.h>
#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <unistd.h>

#include "daemon/clock.h"

struct worker {
	struct device *device;
	pthread_t *threads; /* [device->depth] */
	size_t n_threads;
	pthread_mutex_t lock;  /* of everything below but fd */
	pthread_cond_t handed_over; /* for a thread without a job */
	pthread_cond_t moved;  /* a job was started or finished */
	struct job *jobs[WORKER_JOBS_MAX]; /* job k, as counted from the start, is at k % WORKER_JOBS_MAX */
	uint64_t collected, finished, started, taken, handed; /* how many were; taken: by a thread */
	bool stop;
	bool failed; /* fail what is handed over until all is collected */
	uint64_t busy_ns, last_ns;
	uint64_t progress_ns; /* when a job was last finished, or handed over to a worker without one */
	int fd;
};

static struct job *job_at(const struct worker *worker, uint64_t k)
{
	return worker->jobs[k % WORKER_JOBS_MAX];
}

/* Start a batch, or do the whole of a copy. */
static void start(struct device *device, struct job *job)
{
	switch (job->kind) {
	case JOB_BATCH:
		device->backend->submit(device, &job->batch, &job->error);
		break;
	case JOB_EXPORT:
		device->backend->cache_export(device, job->cache, job->state, &job->error);
		break;
	case JOB_IMPORT:
		device->backend->cache_import(device, job->cache, job->state, &job->error);
		break;
	}
}

/* Start the next job.  The lock is held, but not meanwhile: as nobody else starts one before this one counts. */
static void start_next(struct worker *worker)
{
	struct job *job = job_at(worker, worker->started);

	job->error.code = 0;
	job->started_ns = clock_ns();
	job->skipped = worker->failed && job->kind == JOB_BATCH;
	if (job->skipped) {
		error_set(&job->error, ERR_DEVICE, "not run: the batch before it failed");
	} else {
		pthread_mutex_unlock(&worker->lock);
		start(worker->device, job);
		pthread_mutex_lock(&worker->lock);
		worker->failed |= job->error.code != 0; /* before the next one starts: it may need this one's caches */
	}
	worker->started++;
	pthread_cond_broadcast(&worker->moved);
}

/* Wait for the oldest job under way, with the lock as above, and tell the loop. */
static void finish_next(struct worker *worker)
{
	struct device *device = worker->device;
	struct job *job = job_at(worker, worker->finished);
	const uint64_t one = 1;

	pthread_mutex_unlock(&worker->lock);
	if (!job->error.code && job->kind == JOB_BATCH)
		device->backend->wait(device, &job->error);
	job->ended_ns = clock_ns();
	pthread_mutex_lock(&worker->lock);
	worker->failed |= job->error.code != 0;
	worker->busy_ns += job->ended_ns - (job->started_ns > worker->last_ns ? job->started_ns : worker->last_ns);
	worker->last_ns = worker->progress_ns = job->ended_ns;
	worker->finished++;
	pthread_cond_broadcast(&worker->moved);
	pthread_mutex_unlock(&worker->lock);
	while (write(worker->fd, &one, sizeof one) < 0 && errno == EINTR)
		;
	pthread_mutex_lock(&worker->lock);
}

static void *run(void *arg)
{
	struct worker *worker = arg;

	pthread_mutex_lock(&worker->lock);
	for (;;) {
		uint64_t k;

		while (worker->taken == worker->handed && !worker->stop)
			pthread_cond_wait(&worker->handed_over, &worker->lock);
		if (worker->taken == worker->handed)
			break;
		k = worker->taken++;
		while (worker->started < k)
			pthread_cond_wait(&worker->moved, &worker->lock);
		if (worker->started == k)
			start_next(worker);
		while (worker->finished < k)
			pthread_cond_wait(&worker->moved, &worker->lock);
		finish_next(worker);
	}
	pthread_mutex_unlock(&worker->lock);
	return NULL;
}

int worker_new(struct device *device, int fd, struct worker **ret_worker, struct error *err)
{
	struct worker *worker = calloc(1, sizeof *worker);

	if (worker)
		worker->threads = calloc(device->depth, sizeof *worker->threads);
	if (!worker || !worker->threads) {
		free(worker);
		return error_memory(err, "worker");
	}
	worker->device = device;
	worker->fd = fd;
	pthread_mutex_init(&worker->lock, NULL);
	pthread_cond_init(&worker->handed_over, NULL);
	pthread_cond_init(&worker->moved, NULL);
	for (; worker->n_threads < device->depth; worker->n_threads++) {
		pthread_t *thread = &worker->threads[worker->n_threads];

		errno = pthread_create(thread, NULL, run, worker);
		if (errno) {
			error_system(err, "worker: thread");
			worker_free(worker);
			return ERR_SYSTEM;
		}
		pthread_setname_np(*thread, "worker");
	}
	*ret_worker = worker;
	return 0;
}

void worker_free(struct worker *worker)
{
	if (!worker)
		return;
	pthread_mutex_lock(&worker->lock);
	worker->stop = true;
	pthread_cond_broadcast(&worker->handed_over);
	pthread_mutex_unlock(&worker->lock);
	for (size_t i = 0; i < worker->n_threads; i++)
		pthread_join(worker->threads[i], NULL);
	pthread_cond_destroy(&worker->moved);
	pthread_cond_destroy(&worker->handed_over);
	pthread_mutex_destroy(&worker->lock);
	free(worker->threads);
	free(worker);
}

/* Is it a batch of one window, on a device that computes by itself? */
static bool is_little(const struct device *device, const struct job *job)
{
	return device->depth > 1 && job->kind == JOB_BATCH && job->batch.n_segments == 1 &&
	       job->batch.segments[0].rows <= device->window;
}

void worker_submit(struct worker *worker, struct job *job)
{
	bool idle;

	pthread_mutex_lock(&worker->lock);
	assert(worker->handed - worker->collected < WORKER_JOBS_MAX);
	idle = worker->finished == worker->handed;
	if (idle)
		worker->progress_ns = clock_ns();
	worker->jobs[worker->handed % WORKER_JOBS_MAX] = job;
	if (idle && is_little(worker->device, job))
		start_next(worker);
	worker->handed++; /* no thread has seen the job before */
	pthread_mutex_unlock(&worker->lock);
	pthread_cond_signal(&worker->handed_over);
}

struct job *worker_collect(struct worker *worker)
{
	struct job *job = NULL;

	pthread_mutex_lock(&worker->lock);
	if (worker->collected < worker->finished)
		job = job_at(worker, worker->collected++);
	if (worker->collected == worker->handed)
		worker->failed = false;
	pthread_mutex_unlock(&worker->lock);
	return job;
}

uint64_t worker_stuck_ns(struct worker *worker)
{
	uint64_t since, now;

	pthread_mutex_lock(&worker->lock);
	now = clock_ns();
	since = worker->handed > worker->finished ? worker->progress_ns : now;
	pthread_mutex_unlock(&worker->lock);
	return now - since;
}

uint64_t worker_busy_ns(struct worker *worker)
{
	uint64_t busy;

	pthread_mutex_lock(&worker->lock);
	busy = worker->busy_ns;
	pthread_mutex_unlock(&worker->lock);
	return busy;
}
