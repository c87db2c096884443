/*
 * The loop: builds the server, waits for sockets, worker, signals and timers, and calls the steps of the straight line.
 */
#include "daemon/server.h"

#include <errno.h>
#include <inttypes.h>
#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/signalfd.h>
#include <sys/stat.h>
#include <unistd.h>

#include "daemon/clock.h"
#include "daemon/pages.h"
#include "daemon/reload.h"
#include "daemon/requests.h"
#include "daemon/runtime.h"

#define IO_THREADS 2
#define END_MS 100 /* for a store that has nothing to do, to end, and for the last answers to go */
#define CONTROL_BYTES ((size_t)1 << 20)
#define PUBLISH_HIGH_WATER 4096
#define INGEST_HIGH_WATER 4096

/* --- building and taking down --- */

static int open_model(struct server *server, struct error *err)
{
	const struct config *config = server->config;
	int rc = config_open_model(config, &server->model, err);

	if (rc)
		return rc;
	log_info("model %s: %zu layers, hidden_size %zu, fingerprint %s", config->model,
		 server->model->shape.num_layers, server->model->shape.hidden_size, server->model->fingerprint);
	server->scratch = malloc(server->model->shape.hidden_size * sizeof *server->scratch);
	return server->scratch ? 0 : error_memory(err, "a row");
}

/* Devices that are warm, and their memory. */
static int open_devices(struct server *server, struct error *err)
{
	const uint64_t start = clock_ns();
	int rc = lanes_open(server, err);

	if (rc)
		return rc;
	log_info("%zu x device %s, window %" PRIu64 ", batches of up to %zu rows, warm in %.2f s", server->n_lanes,
		 server->lanes[0].device->description, server->config->window, lanes_batch_rows(server),
		 (double)(clock_ns() - start) / 1e9);
	return blocks_open(server, err);
}

static int open_socket(struct server *server, enum endpoint_kind kind, const char *name,
		       const struct string_list *addresses, const struct endpoint_options *options,
		       struct endpoint **ret_endpoint, struct error *err)
{
	struct endpoint_options secured = *options;
	int rc;

	security_options(server, &secured);
	rc = endpoint_new(server->context, kind, &secured, ret_endpoint, err);

	for (size_t i = 0; !rc && i < addresses->n; i++) {
		char path[256];
		const char *address = addresses->item[i];

		if (kind == ENDPOINT_CONTROL && !strcmp(address, "auto")) {
			rc = runtime_control_address(path, sizeof path, err);
			address = path;
		}
		if (!rc)
			rc = endpoint_attach(*ret_endpoint, address, err);
		if (!rc)
			log_info("%s on %s", name, endpoint_address(*ret_endpoint));
	}
	return rc;
}

/* The sockets that may be there before the devices are warm. */
static int open_sockets(struct server *server, struct error *err)
{
	const struct config *config = server->config;
	const struct shape *shape = &server->model->shape;
	struct endpoint_options publish = {
		.message_bytes = CONTROL_BYTES, .send_high_water = PUBLISH_HIGH_WATER, .receive_high_water = 1024
	};
	struct endpoint_options control = {
		/* an import brings a state */
		.message_bytes = CONTROL_BYTES +
				 (shape_cache_floats(shape) + config->window * shape->hidden_size) * sizeof(float),
		.send_high_water = 64,
		.receive_high_water = 64
	};
	int rc = endpoint_context_new(IO_THREADS, &server->context, err);

	if (!rc)
		rc = endpoint_message_init(&server->message, err);
	if (!rc)
		rc = security_open(server, err);
	if (!rc)
		rc = open_socket(server, ENDPOINT_PUBLISH, "publish", &config->sockets.publish, &publish,
				 &server->publish, err);
	if (!rc)
		rc = open_socket(server, ENDPOINT_CONTROL, "control", &config->sockets.control, &control,
				 &server->control, err);
	return rc;
}

/* The sockets that rows come by: a daemon that fails before it is ready takes none. */
static int open_intake(struct server *server, struct error *err)
{
	const struct config *config = server->config;
	struct endpoint_options ingest = {
		/* up to here ingest refuses what is too much, and says so; a larger frame ends its connection */
		.message_bytes = 2 * config->limits.message_bytes + MESSAGE_HEADER_MAX,
		.send_high_water = INGEST_HIGH_WATER, .receive_high_water = INGEST_HIGH_WATER
	};
	int rc = 0;

	if (config->sockets.subscribe.n)
		rc = open_socket(server, ENDPOINT_SUBSCRIBE, "subscribe", &config->sockets.subscribe, &ingest,
				 &server->subscribe, err);
	if (!rc && config->sockets.ingest.n)
		rc = open_socket(server, ENDPOINT_INGEST, "ingest", &config->sockets.ingest, &ingest, &server->ingest,
				 err);
	return rc;
}

/* Signals arrive through a file descriptor, from now on in every thread. */
static int open_signals(struct server *server, struct error *err)
{
	sigset_t set;

	sigemptyset(&set);
	sigaddset(&set, SIGTERM);
	sigaddset(&set, SIGINT);
	sigaddset(&set, SIGHUP);
	if (sigprocmask(SIG_BLOCK, &set, NULL) || signal(SIGPIPE, SIG_IGN) == SIG_ERR)
		return error_system(err, "signals");
	server->signal_fd = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
	return server->signal_fd < 0 ? error_system(err, "signals") : 0;
}

int server_open(struct server *server, struct config *config, const struct config_source *source, struct error *err)
{
	int rc;

	*server = (struct server){
		.config = config, .source = source, .signal_fd = -1, .worker_fd = -1, .started_ns = clock_ns()
	};
	list_init(&server->dirty);
	list_init(&server->owed);
	list_init(&server->untold);
	list_init(&server->stalled);
	list_init(&server->unflushed);
	list_init(&server->unsaved);
	list_init(&server->loading);
	list_init(&server->on_hold);
	list_init(&server->idle);
	list_init(&server->waiting);
	list_init(&server->unmarked);
	list_init(&server->failed_marks);
	list_init(&server->silent);
	server->publishers.account = &server->publishers.own;
	server->publishers.own.unlimited = true;
	server->itemsize = dtype_size((enum dtype)config->output.dtype);
	if ((rc = table_init(&server->streams, err)) || (rc = table_init(&server->peers, err)) ||
	    (rc = table_init(&server->saved, err)) || (rc = table_init(&server->waiters, err)) ||
	    (rc = open_signals(server, err)) || (rc = service_load(&server->service, err)) ||
	    (rc = open_model(server, err)) || (rc = states_open(server, err)) || (rc = open_sockets(server, err)) ||
	    (rc = pages_open(server, &server->http, err)) || /* what another daemon has taken is known by now */
	    (rc = open_devices(server, err)))
		return rc;
	return open_intake(server, err);
}

static void free_streams(struct server *server)
{
	struct table_entry *entry;

	if (!server->streams.slot)
		return;
	while ((entry = table_next(&server->streams, NULL))) {
		struct stream *stream = list_entry(entry, struct stream, entry);

		table_remove(&server->streams, entry);
		while (stream) {
			struct stream *before = stream->before;

			stream_free(server, stream);
			stream = before;
		}
	}
}

/* Milliseconds that are left to stop: all of shutdown_timeout, if a failure ends the daemon. */
static int time_left(const struct server *server)
{
	int64_t left = server->phase == SERVER_STOPPING ? server->deadline_ms - (int64_t)(clock_ns() / 1000000) :
							  (int64_t)(server->config->shutdown_timeout * 1000);

	return left < 0 ? 0 : left > INT_MAX / 2 ? INT_MAX / 2 : (int)left;
}

void server_free(struct server *server)
{
	const int linger = server->phase == SERVER_STOPPING ? time_left(server) : 0;
	const int answers = linger < END_MS ? END_MS : linger < 1000 ? linger : 1000;
	struct held *held;

	http_free(server->http);
	service_free(&server->service);
	lanes_stop(server);
	requests_free(server);
	endpoint_message_clear(&server->message);
	endpoint_free(server->ingest, linger);
	endpoint_free(server->subscribe, 0);
	endpoint_free(server->publish, linger);
	endpoint_free(server->control, answers);
	security_close(server);
	endpoint_context_free(server->context); /* hidden states on loan are back now */
	free_streams(server);
	states_close(server, time_left(server) + END_MS);
	publish_free(server);
	while (server->waiters.n) {
		struct held_list list = waiting_pop(server);

		while ((held = held_pop(server, &list)))
			free(held);
	}
	blocks_free(server);
	lanes_free(server);
	if (!server->store)
		model_free(server->model);
	free(server->scratch);
	table_free(&server->streams);
	table_free(&server->peers);
	limits_free(server);
	table_free(&server->saved);
	table_free(&server->waiters);
	if (server->signal_fd >= 0)
		close(server->signal_fd);
}

/* --- the loop --- */

void server_drain(struct server *server, bool stop)
{
	struct table_entry *entry, *next;

	if (stop && server->phase != SERVER_STOPPING) {
		server->deadline_ms = server->now_ms + (int64_t)(server->config->shutdown_timeout * 1000);
		log_notice("stopping: finishing what was accepted, for up to %g s", server->config->shutdown_timeout);
		service_stopping(server);
	}
	if (server->phase == SERVER_SERVING)
		for (entry = table_next(&server->streams, NULL); entry; entry = next) {
			next = table_next(&server->streams, entry);
			stream_flush(server, list_entry(entry, struct stream, entry));
		}
	if (server->phase < (stop ? SERVER_STOPPING : SERVER_DRAINING))
		server->phase = stop ? SERVER_STOPPING : SERVER_DRAINING;
}

static void read_signals(struct server *server)
{
	struct config_change changes[CONFIG_CHANGES_MAX];
	struct signalfd_siginfo info;
	struct error error;
	size_t n;

	while (read(server->signal_fd, &info, sizeof info) == (ssize_t)sizeof info) {
		log_notice("%s from process %u", strsignal((int)info.ssi_signo), info.ssi_pid);
		if (info.ssi_signo == SIGHUP)
			reload(server, changes, &n, &error); /* which logs */
		else
			server_drain(server, true);
	}
}

static void retry_stalled(struct server *server)
{
	struct list stalled;
	struct link *link;

	if (server->now_ms < server->retry_ms)
		return;
	while ((link = list_first(&server->owed)))
		list_append(&server->dirty, link);
	list_init(&stalled);
	while ((link = list_first(&server->stalled)))
		list_append(&stalled, link);
	while ((link = list_first(&stalled)))
		publish_hidden(server, list_entry(link, struct stream, stalled));
	publish_untold(server);
}

/* Has all that was accepted gone out? */
static bool all_done(struct server *server)
{
	return lanes_idle(server) && list_empty(&server->stalled) && saving_finished(server);
}

/* Milliseconds until the next timer. */
static int timeout(struct server *server, int64_t due)
{
	if (!list_empty(&server->stalled) || !list_empty(&server->owed) || !list_empty(&server->untold))
		due = server->retry_ms < due ? server->retry_ms : due;
	if (server->phase == SERVER_STOPPING && server->deadline_ms < due)
		due = server->deadline_ms;
	if (due == INT64_MAX)
		return -1;
	due -= server->now_ms;
	return due < 0 ? 0 : due > 60000 ? 60000 : (int)due;
}

static void look_at_clock(struct server *server)
{
	server->now_ns = clock_ns();
	server->now_ms = (int64_t)(server->now_ns / 1000000);
}

/* Wait, then let everything that is ready happen once. */
static int turn(struct server *server, int64_t due, struct error *err)
{
	struct endpoint *const sockets[] = {
		server->security.zap, server->publish, server->control, server->ingest, server->subscribe
	};
	const bool reading[] = { true, true, true, true, ingest_wants_more(server) };
	enum { N = sizeof sockets / sizeof sockets[0] };
	struct endpoint *endpoints[N];
	bool wanted[N], ready[N], fd_ready[4];
	const int fds[4] = { server->worker_fd, server->signal_fd,
			     server->store ? store_fd(server->store) : -1, server->http ? http_fd(server->http) : -1 };
	uint64_t finished;
	size_t n = 0;
	int rc;

	for (size_t i = 0; i < N; i++)
		if (sockets[i]) {
			endpoints[n] = sockets[i];
			wanted[n++] = reading[i];
		}
	rc = endpoint_poll(endpoints, wanted, ready, n, fds, fd_ready, 4, timeout(server, due), err);
	look_at_clock(server);
	if (rc)
		return rc;
	if (fd_ready[1])
		read_signals(server);
	if (fd_ready[0] && read(server->worker_fd, &finished, sizeof finished) == sizeof finished)
		rc = batch_finish(server, err);
	if (fd_ready[2])
		states_collect(server);
	if (fd_ready[3])
		server->http_due_ms = 0;
	for (size_t i = 0; i < n && !rc; i++) {
		if (!ready[i])
			continue;
		if (endpoints[i] == server->security.zap)
			rc = security_serve(server, err);
		else if (endpoints[i] == server->publish)
			rc = security_subscriptions(server, err);
		else if (endpoints[i] == server->control)
			rc = commands_receive(server, err);
		else
			rc = ingest_receive(server, endpoints[i], err);
	}
	retry_stalled(server);
	ingest_waiting(server);
	requests_go_on(server);
	return rc;
}

/* The time to stop is over. */
static int give_up(struct server *server, struct error *err)
{
	const struct state_stats *stats = &server->state_stats;

	saving_give_up(server);
	return error_set(err, ERR_SYSTEM, "not all that was accepted could be published and saved within %g s%s%s",
			 server->config->shutdown_timeout, stats->failing ? ": " : "",
			 stats->failing ? stats->why : "");
}

int server_run(struct server *server, struct error *err)
{
	int rc = 0;

	look_at_clock(server);
	log_notice("ready");
	service_ready(server);
	while (!rc && !server->failed) {
		int64_t due = stream_timers(server), save_due = saving_start(server), load_due = resuming_go_on(server);
		int64_t service_due = service_turn(server), pages_due = pages_turn(server);
		int64_t sweep_due = limits_sweep(server), batch_due = batch_start(server);

		publish_acks(server);
		if (server->phase == SERVER_STOPPING && all_done(server))
			return 0;
		if (server->phase == SERVER_STOPPING && server->now_ms >= server->deadline_ms)
			return give_up(server, err);
		due = save_due < due ? save_due : due;
		due = service_due < due ? service_due : due;
		due = pages_due < due ? pages_due : due;
		due = sweep_due < due ? sweep_due : due;
		due = batch_due < due ? batch_due : due;
		rc = turn(server, load_due < due ? load_due : due, err);
	}
	return rc ? rc : error_set(err, ERR_SYSTEM, "a socket failed");
}
