/*
 * A small HTTP server, for a loop: it has no thread, answers GET and HEAD from memory, and never waits for a client.
 * Connections are few and short: one that stands still is closed.
 */
#ifndef DAEMON_HTTP_H
#define DAEMON_HTTP_H

#include <stdbool.h>
#include <stddef.h>

#include "model/error.h"

struct http_answer {
	unsigned status;
	const char *type; /* of the content */
	char *body;       /* [size], to be freed with free; NULL: */
	const char *text; /* [size], not to be freed */
	size_t size;
};

/* Answer a path; query is the value of ?prefix=, decoded, or NULL. */
typedef void http_handler(void *arg, const char *path, const char *prefix, struct http_answer *ret_answer);

struct http;

/*
 * Listen at "HOST:PORT": HOST is a number or a name, "[...]" around IPv6, or * for all; PORT 0 is any free one.
 * http_check looks at the form alone.  Errors name metrics.listen.
 */
int http_check(const char *address, struct error *err);
int http_new(const char *address, http_handler *handle, void *arg, struct http **ret_http, struct error *err);
void http_free(struct http *http); /* NULL is fine */

const char *http_address(const struct http *http); /* HOST:PORT as it is bound */
bool http_is_local(const struct http *http);       /* to an address that only this machine reaches */
int http_fd(const struct http *http);              /* can be read when http_turn has something to do */
int http_timeout_ms(struct http *http);            /* when http_turn is to be called at the latest; -1: whenever */
void http_turn(struct http *http);

#endif
