/*
 * Keys: what the configuration says of them, the ZAP handler's decisions, and taking rights away while running.
 */
#include "daemon/security.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/clock.h"
#include "daemon/server.h"
#include "protocol/connections.h"
#include "protocol/subscribers.h"
#include "protocol/zap.h"

/* --- the configuration --- */

/* Is it an address of this machine alone, "127.0.0.1:5701", "localhost:5701" or "[::1]:5701"? */
static bool is_loopback(const char *address)
{
	const char *source = strchr(address, ';');
	const char *host = source ? source + 1 : address;
	size_t length = strcspn(host, ":");

	if (!strncmp(host, "[::1]:", 6) || !strncmp(host, "localhost:", 10))
		return true;
	return !strncmp(host, "127.", 4) && strspn(host, "0123456789.") == length;
}

/* Does a TCP address end in a port, or in * for any? */
static bool has_port(const char *address)
{
	const char *port = strrchr(address, ':');
	unsigned long number;
	size_t digits;

	if (!port++)
		return false;
	digits = strspn(port, "0123456789");
	number = strtoul(port, NULL, 10);
	return !strcmp(port, "*") || (digits <= 5 && !port[digits] && number >= 1 && number <= UINT16_MAX);
}

static int check_address(const struct config *config, const char *key, const char *text, struct error *err)
{
	const char *address = text[0] == '>' || text[0] == '@' ? text + 1 : text;
	bool tcp = !strncmp(address, "tcp://", 6), open;

	if (!strcmp(text, "auto") && !strcmp(key, "sockets.control"))
		return 0;
	if (!tcp && strncmp(address, "ipc://", 6))
		return error_set(err, ERR_ARGUMENT, "%s: \"%s\", expected tcp://HOST:PORT or ipc://PATH", key, text);
	if (tcp && !has_port(address))
		return error_set(err, ERR_ARGUMENT, "%s: \"%s\", expected a port from 1 to 65535 behind the host, or *",
				 key, text);
	open = tcp ? !config->security.secret_key[0] && !is_loopback(address + 6) : address[6] == '@';
	if (!open || config->security.insecure)
		return 0;
	if (!tcp)
		return error_set(err, ERR_ARGUMENT, "%s: \"%s\" has no file mode and is open to every user of this "
				 "machine: use a path, or write security.insecure: true", key, text);
	return error_set(err, ERR_ARGUMENT, "%s: \"%s\" is not on loopback: set security.secret_key and "
			 "security.authorized_keys, or write security.insecure: true", key, text);
}

int security_check(const struct config *config, struct error *err)
{
	const struct {
		const char *key;
		const struct string_list *list;
	} sockets[] = {
		{ "sockets.ingest", &config->sockets.ingest }, { "sockets.subscribe", &config->sockets.subscribe },
		{ "sockets.publish", &config->sockets.publish }, { "sockets.control", &config->sockets.control },
	};

	if (config->security.secret_key[0] && !config->security.authorized_keys[0])
		return error_set(err, ERR_ARGUMENT,
				 "security.authorized_keys: expected the file of keys to let in, beside "
				 "security.secret_key");
	if (!config->security.secret_key[0] && config->security.authorized_keys[0])
		return error_set(err, ERR_ARGUMENT,
				 "security.secret_key: expected a key file, beside security.authorized_keys");
	for (size_t i = 0; i < sizeof sockets / sizeof sockets[0]; i++)
		for (size_t k = 0; k < sockets[i].list->n; k++)
			if (check_address(config, sockets[i].key, sockets[i].list->item[k], err))
				return err->code;
	return 0;
}

int security_read(const struct config *config, const struct rights *old, struct key_pair *ret_pair,
		  struct rights **ret_rights, struct error *err)
{
	struct error mistake;

	*ret_rights = NULL;
	if (!config->security.secret_key[0])
		return 0;
	if (keys_read_secret(config->security.secret_key, ret_pair, &mistake))
		return error_set(err, mistake.code, "security.secret_key: %s", mistake.text);
	if (rights_read(config->security.authorized_keys, old, ret_rights, &mistake))
		return error_set(err, mistake.code, "security.authorized_keys: %s", mistake.text);
	return 0;
}

/* --- letting in --- */

int security_open(struct server *server, struct error *err)
{
	struct security *security = &server->security;
	int rc = security_read(server->config, NULL, &security->pair, &security->rights, err);

	if (rc || !security->rights)
		return rc;
	rc = zap_open(server->context, &security->zap, err);
	if (!rc)
		log_notice("keys are asked for on TCP: %zu are authorised, ours is %s", rights_count(security->rights),
			   security->pair.public_key);
	return rc;
}

void security_close(struct server *server)
{
	endpoint_free(server->security.zap, 0);
	rights_free(server->security.rights);
	explicit_bzero(&server->security.pair, sizeof server->security.pair);
}

void security_options(const struct server *server, struct endpoint_options *options)
{
	options->ipc_mode = (unsigned)server->config->security.ipc_mode;
	options->secret_key = server->security.zap ? server->security.pair.secret_key : NULL;
}

/* The ZAP handler's decision. */
static unsigned let_in(void *arg, const unsigned char key[KEY_BYTES], const char *address, size_t size)
{
	struct server *server = arg;
	unsigned user = rights_find(server->security.rights, key);
	char text[KEY_TEXT];

	if (user != ENDPOINT_NOBODY)
		return user;
	server->security.refused++;
	if (log_tap_open(&server->security.refusals, 1)) {
		keys_format(key, text);
		log_warning("refused: the key %s, from %.*s, is not authorised", text, (int)size, address);
	}
	return user;
}

static uint64_t connection_time(void *arg)
{
	struct server *server = arg;

	return connections_time(endpoint_connections(server->publish));
}

int security_serve(struct server *server, struct error *err)
{
	const struct zap_rules rules = { .find = let_in, .time = connection_time, .arg = server };

	return zap_serve(server->security.zap, &server->message, &rules, err);
}

void security_tell_strangers(struct server *server)
{
	struct strangers *strangers = &server->security.strangers;

	if (!strangers->keyless && !strangers->mistaken)
		return;
	if (!log_tap_open(&server->security.failures, 1))
		return;
	log_warning("refused: %" PRIu64 " connections over TCP that showed no key, %" PRIu64
		    " with another key for ours than %s", strangers->keyless, strangers->mistaken,
		    server->security.pair.public_key);
	server->security.refused += strangers->keyless + strangers->mistaken;
	*strangers = (struct strangers){ 0, 0 };
}

/* --- rights --- */

bool security_knows(const struct server *server, struct endpoint *endpoint, const struct endpoint_message *message)
{
	if (message->user == ENDPOINT_NOBODY || rights_known(server->security.rights, message->user))
		return true; /* nobody is told that it is denied */
	endpoint_cut(endpoint, message);
	return false;
}

bool security_allows(const struct server *server, unsigned user, enum right right, const void *id, size_t size)
{
	return rights_allow(server->security.rights, user, right, id, size);
}

int security_check_message(const struct server *server, unsigned user, const struct message *message, const void *id,
			   size_t size, struct error *err)
{
	if (user == ENDPOINT_NOBODY)
		return error_set(err, REFUSED_DENIED, "a peer that shows a key must not choose its routing id");
	if (!security_allows(server, user, RIGHT_WRITE, id, size))
		return error_set(err, REFUSED_DENIED, "this key may not write to this stream");
	if (message->reply && !security_allows(server, user, RIGHT_READ, id, size))
		return error_set(err, REFUSED_DENIED, "this key may not read this stream: open it without reply");
	return 0;
}

/*
 * A subscription within what the user may read is granted as it is, one that goes beyond for the part that it may
 * read.  That part stays until the connection ends: another subscription may be the reason for it as well, and SUB
 * sockets drop what they did not ask for.
 */
static int grant(struct subscribers *subscribers, const struct rights *rights, const struct subscription *asked,
		 struct error *err)
{
	size_t n;
	const struct prefix *prefix = rights_prefixes(rights, asked->user, RIGHT_READ, &n);
	int rc = 0;

	if (rights_allow(rights, asked->user, RIGHT_READ, asked->prefix, asked->size))
		return asked->add ? subscribers_grant(subscribers, asked->prefix, asked->size, err)
				  : subscribers_withdraw(subscribers, asked->prefix, asked->size, err);
	for (size_t i = 0; i < n && asked->add && !rc; i++)
		if (prefix[i].size > asked->size && !memcmp(prefix[i].bytes, asked->prefix, asked->size))
			rc = subscribers_grant(subscribers, prefix[i].bytes, prefix[i].size, err);
	return rc;
}

int security_subscriptions(struct server *server, struct error *err)
{
	struct subscribers *subscribers = endpoint_subscribers(server->publish);
	const uint64_t end = clock_ns() + TURN_NS;
	struct subscription asked;
	int rc;

	do {
		rc = subscribers_next(subscribers, &asked, err);
		if (rc <= 0)
			return rc;
		rc = grant(subscribers, server->security.rights, &asked, err);
	} while (!rc && clock_ns() < end);
	return rc;
}

/* Cut those no longer let in, and subscribers whose right to read changes: these come again, with what is left. */
static void cut_connections(struct server *server, const struct rights *before)
{
	struct endpoint *const endpoints[] = { server->publish, server->control, server->ingest, server->subscribe };
	const struct rights *now = server->security.rights;

	for (unsigned user = 1; user <= rights_users(before); user++) {
		if (!rights_known(before, user))
			continue;
		if (!rights_same(before, now, user, RIGHT_READ))
			connections_cut_user(endpoint_connections(server->publish), user);
		for (size_t i = 0; i < sizeof endpoints / sizeof endpoints[0] && !rights_known(now, user); i++)
			if (endpoints[i])
				connections_cut_user(endpoint_connections(endpoints[i]), user);
	}
}

void security_replace(struct server *server, struct rights *rights)
{
	struct rights *before = server->security.rights;
	struct table_entry *entry = NULL;

	server->security.rights = rights;
	cut_connections(server, before);
	rights_free(before);
	while ((entry = table_next(&server->streams, entry))) {
		struct stream *stream = list_entry(entry, struct stream, entry);

		if (!stream->feeder || !stream->feeder->router)
			continue;
		if (!security_allows(server, stream->feeder->user, RIGHT_READ, stream->id, stream->id_size))
			stream->reply = false;
		if (!security_allows(server, stream->feeder->user, RIGHT_WRITE, stream->id, stream->id_size))
			stream_feed(server, stream, NULL);
	}
}
