/*
 * The lanes: a device each, with its worker and the streams whose caches it holds.  A stream stays on its lane for
 * life; its next life, or its return from disk, may be on another.  So the lanes must be alike: hidden states may not
 * depend on which of them computed them.
 */
#include "daemon/server.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

static int open_device(const struct server *server, const char *name, struct device **ret_device, struct error *err)
{
	const struct config *config = server->config;
	const struct device_options options = {
		.precision = (enum precision)config->precision,
		.threads = config->threads,
		.window = config->window,
		.max_rows = config->limits.batch_rows,
		.cache_bytes = config->limits.cache_bytes,
		.outputs = config->output.outputs,
		.n_outputs = config->output.n_outputs,
		.output_dtype = (enum dtype)config->output.dtype,
	};
	int rc;

	err->text[0] = '\0';
	rc = device_open(name, server->model, &options, ret_device, err);
	if (!rc && err->text[0]) /* auto passed better devices over */
		log_info("%s", err->text);
	return rc;
}

static int open_jobs(struct lane *lane, struct error *err)
{
	const struct device *device = lane->device;

	for (size_t i = 0; i < device->depth; i++) {
		struct server_job *job = &lane->jobs[i];

		job->lane = lane;
		job->segments = calloc(device->max_segments, sizeof *job->segments);
		job->windows = calloc(device->max_rows / device->window, sizeof *job->windows);
		job->entries = calloc(device->max_segments, sizeof *job->entries);
		if (!job->segments || !job->windows || !job->entries)
			return error_memory(err, "batch");
	}
	return 0;
}

static int open_lane(struct server *server, const char *name, struct lane *lane, struct error *err)
{
	const struct device *first = server->lanes[0].device;
	int rc;

	list_init(&lane->ready);
	rc = open_device(server, name, &lane->device, err);
	if (rc)
		return rc;
	if (lane != server->lanes && strcmp(lane->device->description, first->description))
		return error_set(err, ERR_ARGUMENT, "device: %s is \"%s\" and %s is \"%s\": they must be alike",
				 server->config->device.item[0], first->description, name, lane->device->description);
	rc = open_jobs(lane, err);
	return rc ? rc : worker_new(lane->device, server->worker_fd, &lane->worker, err);
}

int lanes_open(struct server *server, struct error *err)
{
	const struct string_list *names = &server->config->device;
	int rc = 0;

	server->worker_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (server->worker_fd < 0)
		return error_system(err, "worker: eventfd");
	server->lanes = calloc(names->n, sizeof *server->lanes);
	if (!server->lanes)
		return error_memory(err, "devices");
	for (size_t i = 0; i < names->n && !rc; i++) {
		rc = open_lane(server, names->item[i], &server->lanes[i], err);
		server->n_lanes++;
	}
	return rc;
}

void lanes_stop(struct server *server)
{
	for (size_t i = 0; i < server->n_lanes; i++) {
		worker_free(server->lanes[i].worker);
		server->lanes[i].worker = NULL;
	}
}

void lanes_free(struct server *server)
{
	for (size_t i = 0; i < server->n_lanes; i++) {
		struct lane *lane = &server->lanes[i];

		for (size_t k = 0; k < sizeof lane->jobs / sizeof lane->jobs[0]; k++) {
			free(lane->jobs[k].segments);
			free(lane->jobs[k].windows);
			free(lane->jobs[k].entries);
		}
		device_close(lane->device);
	}
	free(server->lanes);
	if (server->worker_fd >= 0)
		close(server->worker_fd);
}

struct lane *lanes_choose(struct server *server)
{
	struct lane *best = server->lanes;

	for (size_t i = 1; i < server->n_lanes; i++)
		if (server->lanes[i].streams < best->streams)
			best = &server->lanes[i];
	return best;
}

bool lanes_idle(const struct server *server)
{
	for (size_t i = 0; i < server->n_lanes; i++)
		if (server->lanes[i].jobs_busy || !list_empty(&server->lanes[i].ready))
			return false;
	return true;
}

size_t lanes_batch_rows(const struct server *server)
{
	return server->lanes[0].device->max_rows;
}

uint64_t lanes_busy_ns(const struct server *server)
{
	uint64_t busy = 0;

	for (size_t i = 0; i < server->n_lanes; i++)
		busy += worker_busy_ns(server->lanes[i].worker);
	return busy;
}

uint64_t lanes_stuck_ns(const struct server *server)
{
	uint64_t longest = 0;

	for (size_t i = 0; i < server->n_lanes; i++) {
		const uint64_t stuck = worker_stuck_ns(server->lanes[i].worker);

		longest = stuck > longest ? stuck : longest;
	}
	return longest;
}
