/*
 * Keys: who is let in, and what each may do.  Without security.secret_key there are none, and everybody who reaches a
 * socket may do everything; only loopback and socket files are served then.
 */
#ifndef DAEMON_SECURITY_H
#define DAEMON_SECURITY_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "daemon/log.h"
#include "daemon/rights.h"
#include "model/error.h"
#include "protocol/connections.h"
#include "protocol/endpoint.h"

struct config;
struct server;

struct security {
	struct endpoint *zap;      /* NULL: no keys */
	struct rights *rights;     /* NULL: no keys */
	struct key_pair pair;      /* ours */
	uint64_t refused;          /* connections */
	struct strangers strangers; /* not told of yet */
	struct log_tap refusals, failures;
};

/* Check what the configuration says of addresses and keys, without reading files. */
int security_check(const struct config *config, struct error *err);

/* Read the key files that it names.  Users keep the numbers that they have in old (NULL: none). */
int security_read(const struct config *config, const struct rights *old, struct key_pair *ret_pair,
		  struct rights **ret_rights, struct error *err);

/* Read the key files and open the ZAP handler, before any other socket; close it after all of them. */
int security_open(struct server *server, struct error *err);
void security_close(struct server *server);

/* Let in, or not, who knocked meanwhile. */
int security_serve(struct server *server, struct error *err);

/* Count and log the strangers, once a second. */
void security_tell_strangers(struct server *server);

/* Grant what was subscribed to meanwhile, as far as rights go. */
int security_subscriptions(struct server *server, struct error *err);

/* What endpoints are opened with. */
void security_options(const struct server *server, struct endpoint_options *options);

/* Other rights from now on: takes rights, and takes away what is no longer allowed. */
void security_replace(struct server *server, struct rights *rights);

/* May the user do what the message about this stream asks for?  Else REFUSED_DENIED. */
int security_check_message(const struct server *server, unsigned user, const struct message *message, const void *id,
			   size_t size, struct error *err);

/* Is the sender's key still authorised?  If not, it is cut off. */
bool security_knows(const struct server *server, struct endpoint *endpoint, const struct endpoint_message *message);

/* May the user do this to the stream, or to all whose id begins with id? */
bool security_allows(const struct server *server, unsigned user, enum right right, const void *id, size_t size);

#endif
