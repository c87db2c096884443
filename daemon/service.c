/*
 * The daemon as a service: see service.h.  Called once a turn of the loop; while the loop does not turn yet, because a
 * model is being loaded, a thread looks whether that makes progress.
 */
#include "daemon/service.h"

#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>

#include "daemon/clock.h"
#include "daemon/server.h"
#include "daemon/systemd.h"

#define STATUS_MS 2000
#define LOOK_S 5    /* while loading: how often progress is looked for, */
#define EXTEND_S 30 /* and for how long more time is asked for then */
#define LEAVE_MS 10000 /* for taking down what remains when the time to stop is over */

/* --- loading --- */

struct service_loader {
	pthread_t thread;
	pthread_mutex_t lock;
	pthread_cond_t changed;
	bool stop;
};

/* What loading uses up: CPU time in microseconds, and pages read from disk. */
static uint64_t work_done(void)
{
	struct rusage usage;

	getrusage(RUSAGE_SELF, &usage);
	return (uint64_t)(usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) * 1000000u +
	       (uint64_t)(usage.ru_utime.tv_usec + usage.ru_stime.tv_usec) +
	       (uint64_t)(usage.ru_majflt + usage.ru_inblock) * 1000u;
}

/* Ask for more time as long as a hundredth of it is used. */
static void *loader_run(void *arg)
{
	struct service_loader *loader = arg;
	uint64_t before = 0, now;
	struct timespec until;

	pthread_mutex_lock(&loader->lock);
	while (!loader->stop) {
		now = work_done();
		if (now - before > LOOK_S * 1000000u / 100)
			systemd_notify("EXTEND_TIMEOUT_USEC=%u", EXTEND_S * 1000000u);
		before = now;
		clock_gettime(CLOCK_MONOTONIC, &until);
		until.tv_sec += LOOK_S;
		pthread_cond_timedwait(&loader->changed, &loader->lock, &until);
	}
	pthread_mutex_unlock(&loader->lock);
	return NULL;
}

int service_load(struct service *service, struct error *err)
{
	struct service_loader *loader;
	pthread_condattr_t monotonic;

	service->managed = systemd_listens();
	service->watchdog_ms = (int64_t)(systemd_watchdog_us() / 1000);
	if (!service->managed)
		return 0;
	systemd_notify("STATUS=loading the model");
	loader = calloc(1, sizeof *loader);
	if (!loader)
		return error_memory(err, "service");
	pthread_mutex_init(&loader->lock, NULL);
	pthread_condattr_init(&monotonic);
	pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
	pthread_cond_init(&loader->changed, &monotonic);
	pthread_condattr_destroy(&monotonic);
	errno = pthread_create(&loader->thread, NULL, loader_run, loader);
	if (errno) {
		free(loader);
		return error_system(err, "service: thread");
	}
	service->loader = loader;
	return 0;
}

void service_free(struct service *service)
{
	struct service_loader *loader = service->loader;

	if (!loader)
		return;
	pthread_mutex_lock(&loader->lock);
	loader->stop = true;
	pthread_cond_signal(&loader->changed);
	pthread_mutex_unlock(&loader->lock);
	pthread_join(loader->thread, NULL);
	pthread_cond_destroy(&loader->changed);
	pthread_mutex_destroy(&loader->lock);
	free(loader);
	service->loader = NULL;
}

/* --- changes of state --- */

void service_ready(struct server *server)
{
	service_free(&server->service);
	systemd_notify("READY=1");
}

void service_reloading(struct server *server)
{
	(void)server;
	systemd_notify("RELOADING=1\nMONOTONIC_USEC=%" PRIu64, clock_ns() / 1000u);
}

void service_stopping(struct server *server)
{
	systemd_notify("STOPPING=1\nEXTEND_TIMEOUT_USEC=%" PRIu64,
		       (uint64_t)(server->deadline_ms - server->now_ms + LEAVE_MS) * 1000u);
}

/* --- from turn to turn --- */

static void pat(struct server *server)
{
	struct service *service = &server->service;
	int64_t stuck_ms;

	if (server->now_ms < service->pat_ms)
		return;
	stuck_ms = (int64_t)(lanes_stuck_ns(server) / 1000000u);
	service->pat_ms = server->now_ms + service->watchdog_ms / 4;
	if (stuck_ms < service->watchdog_ms) {
		systemd_notify("WATCHDOG=1");
		service->stuck = false;
		return;
	}
	if (!service->stuck)
		log_error("the device has not finished anything for %" PRId64 " s: the watchdog is no longer told that "
			  "all is well", stuck_ms / 1000);
	service->stuck = true;
}

/* Rows or whatever it is a second, since the last status. */
static double rate(uint64_t now, uint64_t before, double seconds)
{
	return seconds > 0 ? (double)(now - before) / seconds : 0;
}

static void write_status(struct server *server, char *text, size_t size)
{
	static const char *const phases[] = {
		[SERVER_SERVING] = "serving", [SERVER_DRAINING] = "draining", [SERVER_STOPPING] = "stopping"
	};
	const struct service *service = &server->service;
	const struct stats *stats = &server->stats;
	double seconds = (double)(server->now_ms - service->since_ms) / 1000;
	uint64_t batches = stats->batches - service->batches;
	double rows = server->metrics.batch_rows.sum - service->batch_rows;

	if (service->stuck)
		snprintf(text, size, "stuck: the device has not finished anything for %" PRIu64 " s",
			 lanes_stuck_ns(server) / 1000000000u);
	else
		snprintf(text, size, "%s %zu streams: %.0f rows/s in, %.0f out, batches %.0f%% full%s%.100s",
			 phases[server->phase], server->streams.n, rate(stats->rows_in, service->rows_in, seconds),
			 rate(stats->rows_out, service->rows_out, seconds),
			 batches ? 100 * rows / (double)(batches * lanes_batch_rows(server)) : 0.0,
			 server->state_stats.failing ? "; states: " : "",
			 server->state_stats.failing ? server->state_stats.why : "");
}

/* Say how things are.  Returns when to do so again; an idle daemon that has said so has no more to say. */
static int64_t say_status(struct server *server)
{
	struct service *service = &server->service;
	const struct stats *stats = &server->stats;
	char text[sizeof service->status];
	bool changed;

	if (server->now_ms >= service->status_ms) {
		write_status(server, text, sizeof text);
		changed = strcmp(text, service->status) != 0;
		if (changed)
			systemd_notify("STATUS=%s", text);
		memcpy(service->status, text, sizeof text);
		service->since_ms = server->now_ms;
		service->rows_in = stats->rows_in;
		service->rows_out = stats->rows_out;
		service->batches = stats->batches;
		service->batch_rows = server->metrics.batch_rows.sum;
		service->status_ms = server->now_ms + STATUS_MS;
		if (!changed)
			return INT64_MAX;
	}
	return service->status_ms;
}

int64_t service_turn(struct server *server)
{
	struct service *service = &server->service;
	int64_t due;

	if (!service->managed)
		return INT64_MAX;
	due = say_status(server);
	if (!service->watchdog_ms)
		return due;
	pat(server);
	return service->pat_ms < due ? service->pat_ms : due;
}
