/*
 * What the daemon shows over HTTP: see pages.h.  A table says which path is answered by what; status and streams are
 * the answers of the control socket, in JSON.
 */
#include "daemon/pages.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/server.h"

#define STUCK_S 60 /* a batch that takes longer is no sign of health */

static const char page_html[] =
#include "daemon/page.inc"
	;

static void say(struct http_answer *answer, unsigned status, const char *text)
{
	*answer = (struct http_answer){ .status = status, .type = "text/plain", .text = text, .size = strlen(text) };
}

static void show_page(struct server *server, const char *prefix, struct http_answer *answer)
{
	(void)server;
	(void)prefix;
	*answer = (struct http_answer){
		.status = 200, .type = "text/html; charset=utf-8", .text = page_html, .size = sizeof page_html - 1
	};
}

static void show_metrics(struct server *server, const char *prefix, struct http_answer *answer)
{
	(void)prefix;
	answer->body = metrics_text(server, &answer->size);
	answer->type = "text/plain; version=0.0.4; charset=utf-8";
}

/* Does it get on?  A daemon that does not is to be restarted. */
static void show_health(struct server *server, const char *prefix, struct http_answer *answer)
{
	(void)prefix;
	if (lanes_stuck_ns(server) / 1000000000u >= STUCK_S)
		say(answer, 503, "stuck: the device has not finished anything for a minute\n");
	else
		say(answer, 200, "ok\n");
}

/* Does it take input?  One that does not is to be passed over. */
static void show_readiness(struct server *server, const char *prefix, struct http_answer *answer)
{
	(void)prefix;
	if (server->phase == SERVER_SERVING)
		say(answer, 200, "ready\n");
	else
		say(answer, 503, server->phase == SERVER_DRAINING ? "draining\n" : "stopping\n");
}

/* A command's answer to this user, in JSON. */
static void show_answer(struct server *server, unsigned user, const char *cmd, const char *prefix,
			struct http_answer *answer)
{
	struct control control;
	struct error error;
	size_t size;
	void *bytes = commands_answer(server, user, cmd, prefix, &size);
	FILE *out = bytes ? open_memstream(&answer->body, &answer->size) : NULL;

	if (out && !control_read(bytes, size, &control, &error))
		control_print_json(&control, out);
	if (out && fclose(out))
		answer->body = NULL;
	answer->type = "application/json";
	free(bytes);
}

static void show_status(struct server *server, const char *prefix, struct http_answer *answer)
{
	(void)prefix;
	show_answer(server, ENDPOINT_ANYBODY, "status", NULL, answer);
}

/* Stream ids are for those who might ask for them without a key: where there are no keys, on this machine. */
static void show_streams(struct server *server, const char *prefix, struct http_answer *answer)
{
	bool open = !server->security.rights && http_is_local(server->http);

	show_answer(server, open ? ENDPOINT_ANYBODY : ENDPOINT_NOBODY, "streams", prefix, answer);
}

static const struct {
	const char *path;
	void (*show)(struct server *server, const char *prefix, struct http_answer *answer);
} pages[] = {
	{ "/", show_page },           { "/metrics", show_metrics }, { "/healthz", show_health },
	{ "/readyz", show_readiness }, { "/status", show_status },   { "/streams", show_streams },
};

static void handle(void *arg, const char *path, const char *prefix, struct http_answer *ret_answer)
{
	for (size_t i = 0; i < sizeof pages / sizeof pages[0]; i++)
		if (!strcmp(path, pages[i].path)) {
			*ret_answer = (struct http_answer){ .status = 200 };
			pages[i].show(arg, prefix, ret_answer);
			if (!ret_answer->body && !ret_answer->text)
				say(ret_answer, 500, "out of memory\n");
			return;
		}
	say(ret_answer, 404, "there are /, /metrics, /healthz, /readyz, /status and /streams\n");
}

int pages_open(struct server *server, struct http **ret_http, struct error *err)
{
	const char *address = server->config->metrics.listen;
	int rc;

	if (!*address)
		return 0;
	rc = http_new(address, handle, server, ret_http, err);
	if (!rc)
		log_info("metrics on http://%s/metrics", http_address(*ret_http));
	return rc;
}

int64_t pages_turn(struct server *server)
{
	int ms;

	if (!server->http)
		return INT64_MAX;
	if (server->now_ms >= server->http_due_ms) {
		http_turn(server->http);
		ms = http_timeout_ms(server->http);
		server->http_due_ms = ms < 0 ? INT64_MAX : server->now_ms + ms;
	}
	return server->http_due_ms;
}
