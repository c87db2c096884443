/*
 * What the daemon shows over HTTP at metrics.listen: metrics, health, and a page for people.
 */
#ifndef DAEMON_PAGES_H
#define DAEMON_PAGES_H

#include <stdint.h>

#include "daemon/http.h"

struct server;

/* Listen, unless metrics.listen is empty: then *ret_http becomes NULL. */
int pages_open(struct server *server, struct http **ret_http, struct error *err);

/* Once a turn of the loop: answer what came by server->http_due_ms, which is returned. */
int64_t pages_turn(struct server *server);

#endif
