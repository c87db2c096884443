/*
 * What libzmq alone does: a ROUTER whose thread sends each message with a payload back to where it came from, and to an
 * XPUB, as the daemon does with hidden states.  Nothing is copied that libzmq does not copy itself.
 */
#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <zmq.h>

#include "tests/bench_daemon.h"

#define IO_THREADS 2 /* as the daemon has */
#define HIGH_WATER 4096
#define FRAMES 4 /* identity, stream, header, payload */

struct echo {
	void *context, *router, *publish;
	pthread_t thread;
	_Atomic double hold; /* seconds */
	char address[128];
};

static void check(int status, const char *what)
{
	struct error err;

	if (status < 0)
		bench_check(error_set(&err, ERR_SYSTEM, "%s: %s", what, zmq_strerror(zmq_errno())), &err);
}

/* Receive a message; returns its frames, or 0 when it is time to go. */
static size_t receive(void *socket, zmq_msg_t frames[FRAMES])
{
	size_t n = 0;

	do {
		zmq_msg_init(&frames[n]);
		if (zmq_msg_recv(&frames[n], socket, 0) < 0)
			return 0;
		n++;
	} while (n < FRAMES && zmq_msg_more(&frames[n - 1]));
	return n;
}

static void *serve(void *arg)
{
	struct echo *echo = arg;
	zmq_msg_t frames[FRAMES];
	size_t n;

	while ((n = receive(echo->router, frames)) > 0) {
		const double until = n == FRAMES ? bench_now() + echo->hold : 0;

		while (bench_now() < until)
			;
		for (size_t i = 1; i < n && n == FRAMES; i++) {
			zmq_msg_t copy;

			zmq_msg_init(&copy);
			zmq_msg_copy(&copy, &frames[i]);
			zmq_msg_send(&copy, echo->publish, i + 1 < n ? ZMQ_SNDMORE : 0);
		}
		for (size_t i = 0; i < n && n == FRAMES; i++)
			zmq_msg_send(&frames[i], echo->router, i + 1 < n ? ZMQ_SNDMORE : 0);
		for (size_t i = 0; i < n; i++)
			zmq_msg_close(&frames[i]);
	}
	zmq_close(echo->router);
	zmq_close(echo->publish);
	return NULL;
}

static void *open_socket(struct echo *echo, int type, const char *like)
{
	static const int high_water = HIGH_WATER, linger = 0;
	void *socket = zmq_socket(echo->context, type);
	size_t size = sizeof echo->address;

	check(socket ? 0 : -1, "a socket");
	check(zmq_setsockopt(socket, ZMQ_SNDHWM, &high_water, sizeof high_water), "high water");
	check(zmq_setsockopt(socket, ZMQ_RCVHWM, &high_water, sizeof high_water), "high water");
	check(zmq_setsockopt(socket, ZMQ_LINGER, &linger, sizeof linger), "linger");
	check(zmq_bind(socket, strncmp(like, "ipc:", 4) ? "tcp://127.0.0.1:*" : "ipc://*"), "an address of our own");
	check(zmq_getsockopt(socket, ZMQ_LAST_ENDPOINT, echo->address, &size), "an address of our own");
	return socket;
}

struct echo *echo_new(const char *like)
{
	struct echo *echo = bench_must(calloc(1, sizeof *echo));

	echo->context = zmq_ctx_new();
	check(echo->context ? zmq_ctx_set(echo->context, ZMQ_IO_THREADS, IO_THREADS) : -1, "a context");
	echo->publish = open_socket(echo, ZMQ_XPUB, like);
	echo->router = open_socket(echo, ZMQ_ROUTER, like);
	errno = pthread_create(&echo->thread, NULL, serve, echo);
	check(errno ? -1 : 0, "a thread");
	return echo;
}

const char *echo_address(const struct echo *echo)
{
	return echo->address;
}

void echo_hold(struct echo *echo, double seconds)
{
	echo->hold = seconds;
}

void echo_free(struct echo *echo)
{
	zmq_ctx_shutdown(echo->context);
	pthread_join(echo->thread, NULL);
	zmq_ctx_term(echo->context);
	free(echo);
}
