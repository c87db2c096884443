/*
 * The worker: see worker.h.  It is a pair of threads, so that a batch can be started while an older one is waited for:
 * with two batches on a GPU the copies of one overlap the compute of the other.
 */
#include "daemon/worker.h"

#include <assert.h>
#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <unistd.h>

#include "daemon/clock.h"

/* A queue of job pointers, first in first out. */
struct queue {
	struct job *job[WORKER_JOBS_MAX];
	size_t first, n;
};

struct worker {
	struct device *device;
	pthread_t starter, waiter;
	pthread_mutex_t lock;
	pthread_cond_t changed;
	struct queue handed, running, done; /* a job moves from left to right, never overtaking */
	bool stop;
	bool failed;    /* fail what is handed over until all is collected */
	size_t outside; /* jobs handed over and not collected */
	uint64_t busy_ns, last_ns;
	uint64_t progress_ns; /* when a job was last finished, or handed over to a worker without one */
	int fd;
};

static void push(struct queue *queue, struct job *job)
{
	assert(queue->n < WORKER_JOBS_MAX);
	queue->job[(queue->first + queue->n++) % WORKER_JOBS_MAX] = job;
}

static struct job *pop(struct queue *queue)
{
	struct job *job = queue->job[queue->first];

	if (!queue->n)
		return NULL;
	queue->first = (queue->first + 1) % WORKER_JOBS_MAX;
	queue->n--;
	return job;
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

/* Start what is handed over, as long as the device takes more. */
static void *starter_run(void *arg)
{
	struct worker *worker = arg;
	struct device *device = worker->device;
	struct job *job;

	pthread_mutex_lock(&worker->lock);
	for (;;) {
		while (!worker->handed.n && !worker->stop)
			pthread_cond_wait(&worker->changed, &worker->lock);
		if (!worker->handed.n)
			break;
		while (worker->running.n >= device->depth)
			pthread_cond_wait(&worker->changed, &worker->lock);
		job = pop(&worker->handed);
		job->error.code = 0;
		job->started_ns = clock_ns();
		job->skipped = worker->failed;
		if (job->skipped) {
			error_set(&job->error, ERR_DEVICE, "not run: the batch before it failed");
		} else {
			pthread_mutex_unlock(&worker->lock);
			start(device, job);
			pthread_mutex_lock(&worker->lock);
		}
		push(&worker->running, job);
		pthread_cond_broadcast(&worker->changed);
	}
	pthread_mutex_unlock(&worker->lock);
	return NULL;
}

/* Wait for the oldest batch on the device and tell the loop. */
static void *waiter_run(void *arg)
{
	struct worker *worker = arg;
	struct device *device = worker->device;
	uint64_t one = 1;
	struct job *job;

	pthread_mutex_lock(&worker->lock);
	for (;;) {
		while (!worker->running.n && !(worker->stop && worker->outside == worker->done.n))
			pthread_cond_wait(&worker->changed, &worker->lock);
		if (!worker->running.n)
			break;
		job = worker->running.job[worker->running.first];
		pthread_mutex_unlock(&worker->lock);
		if (!job->error.code && job->kind == JOB_BATCH)
			device->backend->wait(device, &job->error);
		job->ended_ns = clock_ns();
		pthread_mutex_lock(&worker->lock);
		worker->failed |= job->error.code != 0;
		worker->busy_ns +=
			job->ended_ns - (job->started_ns > worker->last_ns ? job->started_ns : worker->last_ns);
		worker->last_ns = worker->progress_ns = job->ended_ns;
		push(&worker->done, pop(&worker->running));
		pthread_cond_broadcast(&worker->changed);
		while (write(worker->fd, &one, sizeof one) < 0 && errno == EINTR)
			;
	}
	pthread_mutex_unlock(&worker->lock);
	return NULL;
}

static void stop_thread(struct worker *worker, pthread_t thread)
{
	pthread_mutex_lock(&worker->lock);
	worker->stop = true;
	pthread_cond_broadcast(&worker->changed);
	pthread_mutex_unlock(&worker->lock);
	pthread_join(thread, NULL);
}

int worker_new(struct device *device, int fd, struct worker **ret_worker, struct error *err)
{
	struct worker *worker = calloc(1, sizeof *worker);

	if (!worker)
		return error_memory(err, "worker");
	worker->device = device;
	worker->fd = fd;
	pthread_mutex_init(&worker->lock, NULL);
	pthread_cond_init(&worker->changed, NULL);
	errno = pthread_create(&worker->starter, NULL, starter_run, worker);
	if (errno) {
		error_system(err, "worker: thread");
		goto fail;
	}
	errno = pthread_create(&worker->waiter, NULL, waiter_run, worker);
	if (errno) {
		error_system(err, "worker: thread");
		stop_thread(worker, worker->starter);
		goto fail;
	}
	pthread_setname_np(worker->starter, "worker-starter");
	pthread_setname_np(worker->waiter, "worker-waiter");
	*ret_worker = worker;
	return 0;
fail:
	pthread_cond_destroy(&worker->changed);
	pthread_mutex_destroy(&worker->lock);
	free(worker);
	return ERR_SYSTEM;
}

void worker_free(struct worker *worker)
{
	if (!worker)
		return;
	stop_thread(worker, worker->starter);
	stop_thread(worker, worker->waiter);
	pthread_cond_destroy(&worker->changed);
	pthread_mutex_destroy(&worker->lock);
	free(worker);
}

void worker_submit(struct worker *worker, struct job *job)
{
	pthread_mutex_lock(&worker->lock);
	if (!worker->handed.n && !worker->running.n)
		worker->progress_ns = clock_ns();
	push(&worker->handed, job);
	worker->outside++;
	pthread_cond_broadcast(&worker->changed);
	pthread_mutex_unlock(&worker->lock);
}

struct job *worker_collect(struct worker *worker)
{
	struct job *job;

	pthread_mutex_lock(&worker->lock);
	job = pop(&worker->done);
	if (job && --worker->outside == 0)
		worker->failed = false;
	pthread_mutex_unlock(&worker->lock);
	return job;
}

uint64_t worker_stuck_ns(struct worker *worker)
{
	uint64_t since, now;

	pthread_mutex_lock(&worker->lock);
	now = clock_ns();
	since = worker->outside > worker->done.n ? worker->progress_ns : now;
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
