/*
 * The ZAP handler: see zap.h.  A request has the frames version, request id, domain, address, routing id, mechanism and
 * one credential per mechanism; the answer version, request id, status code, status text, user id and metadata.
 */
#include "protocol/zap.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { FRAME_VERSION, FRAME_REQUEST, FRAME_DOMAIN, FRAME_ADDRESS, FRAME_ROUTING_ID, FRAME_MECHANISM, FRAME_KEY };

int zap_open(struct endpoint_context *context, struct endpoint **ret_zap, struct error *err)
{
	const struct endpoint_options options = { .message_bytes = 1024 }; /* and as many messages as come */
	struct endpoint *zap;
	int status = endpoint_new(context, ENDPOINT_ZAP, &options, &zap, err);

	if (status != 0)
		return status;
	status = endpoint_attach(zap, ZAP_ADDRESS, err);
	if (status != 0) {
		endpoint_free(zap, 0);
		return status;
	}
	*ret_zap = zap;
	return 0;
}

static bool frame_is(const struct endpoint_message *message, size_t i, const char *text)
{
	return i < message->n_frames && message->frame[i].size == strlen(text)
	       && memcmp(message->frame[i].data, text, strlen(text)) == 0;
}

/* Whom a request is about; ENDPOINT_NOBODY for whatever is not exactly as expected. */
static unsigned int judge(const struct endpoint_message *request, const struct zap_rules *rules)
{
	if (!frame_is(request, FRAME_VERSION, "1.0"))
		return ENDPOINT_NOBODY;
	if (frame_is(request, FRAME_DOMAIN, ZAP_DOMAIN_LOCAL) && frame_is(request, FRAME_MECHANISM, "NULL"))
		return ENDPOINT_ANYBODY;
	if (frame_is(request, FRAME_DOMAIN, ZAP_DOMAIN_KEYS) && frame_is(request, FRAME_MECHANISM, "CURVE")
	    && request->n_frames == FRAME_KEY + 1 && request->frame[FRAME_KEY].size == KEY_BYTES)
		return rules->find(rules->arg, request->frame[FRAME_KEY].data, request->frame[FRAME_ADDRESS].data,
				   request->frame[FRAME_ADDRESS].size);
	return ENDPOINT_NOBODY;
}

static struct endpoint_frame text_frame(const char *text)
{
	return (struct endpoint_frame){ .data = text, .size = strlen(text) };
}

/* The status 400 is final: the peer does not try again on that socket. */
static int answer(struct endpoint *zap, const struct endpoint_message *request, unsigned int user, uint64_t time,
		  struct error *err)
{
	const bool welcome = user != ENDPOINT_NOBODY;
	struct endpoint_frame frames[6];
	enum endpoint_sent sent;
	char user_id[48] = "";

	if (welcome)
		snprintf(user_id, sizeof user_id, "%u %" PRIu64, user, time);
	frames[0] = text_frame("1.0");
	frames[1] = (struct endpoint_frame){ .data = request->frame[FRAME_REQUEST].data,
					     .size = request->frame[FRAME_REQUEST].size };
	frames[2] = text_frame(welcome ? "200" : "400");
	frames[3] = text_frame(welcome ? "" : "this key is not authorised");
	frames[4] = text_frame(user_id);
	frames[5] = text_frame("");
	return endpoint_send(zap, frames, 6, &sent, err);
}

int zap_serve(struct endpoint *zap, struct endpoint_message *message, const struct zap_rules *rules, struct error *err)
{
	int status;

	while ((status = endpoint_receive(zap, message, err)) > 0) {
		status = answer(zap, message, judge(message, rules), rules->time(rules->arg), err);
		if (status != 0)
			return status;
	}
	return status;
}

bool zap_read_user(const char *text, unsigned int *ret_user, uint64_t *ret_time)
{
	char *end, *last;
	const unsigned long user = strtoul(text, &end, 10);
	const uint64_t time = strtoull(end, &last, 10);

	if (end == text || last == end || *last != '\0' || user >= ENDPOINT_NOBODY)
		return false;
	*ret_user = (unsigned int)user;
	*ret_time = time;
	return true;
}
