/*
 * Limits of one peer: see limits.h.
 */
#include "daemon/limits.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/server.h"
#include "protocol/connections.h"

#define UNFINISHED_MESSAGES 4 /* of the largest size, may be on their way to an endpoint at once */
#define SWEEP_MS 250
#define OVERDUE_MS 2000 /* by then every connection had its turn, also where messages never cease */

/* The account of a user; NULL without memory. */
static struct account *find(struct accounts *accounts, unsigned user)
{
	if (user > accounts->n) {
		struct account **grown = realloc(accounts->item, user * sizeof(struct account *));

		if (!grown)
			return NULL;
		memset(grown + accounts->n, 0, (user - accounts->n) * sizeof(struct account *));
		accounts->item = grown;
		accounts->n = user;
	}
	if (!accounts->item[user - 1]) {
		accounts->item[user - 1] = calloc(1, sizeof(struct account));
		if (accounts->item[user - 1])
			accounts->item[user - 1]->lasting = true;
	}
	return accounts->item[user - 1];
}

int limits_identify(struct server *server, struct peer *peer, unsigned user, struct error *err)
{
	struct account *account = user == ENDPOINT_ANYBODY ? &peer->own : find(&server->accounts, user);

	if (!account)
		return error_memory(err, "peer");
	peer->user = user;
	peer->account = account;
	return 0;
}

void limits_free(struct server *server)
{
	for (size_t i = 0; i < server->accounts.n; i++)
		free(server->accounts.item[i]);
	free(server->accounts.item);
}

int limits_count_message(struct server *server, struct peer *peer, struct error *err)
{
	struct account *account = peer->account;
	uint64_t most = server->config->limits.peer_messages;

	if (!most || account->unlimited)
		return 0;
	if (server->now_ms - account->second_ms >= 1000) {
		account->second_ms = server->now_ms;
		account->messages = 0;
	}
	if (++account->messages <= most)
		return 0;
	return error_set(err, REFUSED_NO_CREDIT, "more than %" PRIu64 " messages in a second: send it again later",
			 most);
}

int limits_check_streams(const struct server *server, const struct peer *peer, const struct stream *stream,
			 struct error *err)
{
	const struct account *account = peer->account;
	uint64_t most = server->config->limits.peer_streams;

	if (!most || account->unlimited || account->streams < most || (stream && stream->account == account))
		return 0;
	return error_set(err, REFUSED_TOO_MANY_STREAMS,
			 "%zu streams of this peer are open, limits.peer_streams allows no more", account->streams);
}

/* Cut what is too much of one endpoint. */
static void bound_unfinished(struct server *server, struct endpoint *endpoint)
{
	uint64_t most = UNFINISHED_MESSAGES * server->config->limits.message_bytes;
	struct unfinished unfinished;

	for (;;) {
		connections_unfinished(endpoint_connections(endpoint), server->now_ms, &unfinished);
		if (unfinished.bytes <= most || unfinished.fd < 0)
			return;
		log_warning("a connection is cut: %" PRIu64 " bytes came over it since its last whole message, %" PRIu64
			    " over all", unfinished.fd_bytes, unfinished.bytes);
		connections_cut(endpoint_connections(endpoint), unfinished.fd);
	}
}

int64_t limits_sweep(struct server *server)
{
	struct endpoint *const endpoints[] = { server->ingest, server->subscribe, server->publish, server->control };
	bool overdue = server->now_ms >= server->sweep_ms + OVERDUE_MS;

	if (!server->security.zap)
		return INT64_MAX;
	if (server->now_ms < server->sweep_ms || (!server->drained && !overdue))
		return server->sweep_ms > server->now_ms ? server->sweep_ms : server->now_ms + SWEEP_MS;
	for (size_t i = 0; i < sizeof endpoints / sizeof endpoints[0]; i++) {
		if (!endpoints[i])
			continue;
		bound_unfinished(server, endpoints[i]);
		connections_strangers(endpoint_connections(endpoints[i]), &server->security.strangers);
	}
	security_tell_strangers(server);
	server->sweep_ms = server->now_ms + SWEEP_MS;
	return server->sweep_ms;
}

void limits_count_stream(struct stream *stream, struct account *account)
{
	if (stream->account)
		stream->account->streams--;
	if (account)
		account->streams++;
	stream->account = account;
}
