/*
 * Reloading, asked for by SIGHUP or the control command.  Everything that can fail happens before anything changes:
 * the new configuration is checked by itself, and again as what would run, as a live key may contradict one that
 * keeps its running value.
 */
#include "daemon/reload.h"

#include <string.h>

#include "daemon/server.h"

/* Check the configuration by itself. */
static int check(const struct server *server, struct config *fresh, struct error *err)
{
	int rc = config_finish(fresh, err);

	if (!rc && !strcmp(fresh->model, server->config->model))
		rc = config_suits(fresh, server->model, err);
	return rc;
}

/* Exchange the live keys of the running configuration for those of fresh; on failure nothing is changed. */
static int take_over(struct server *server, struct config *fresh, struct error *err)
{
	struct error mistake;

	config_swap_live(server->config, fresh);
	if (!config_check(server->config, &mistake))
		return 0;
	config_swap_live(server->config, fresh);
	return error_set(err, ERR_ARGUMENT, "beside the keys that need a restart: %.200s", mistake.text);
}

/* Bring what follows from the live keys in line with them. */
static void apply(struct server *server)
{
	struct table_entry *entry = NULL;

	log_set_level((enum log_level)server->config->log.level);
	while ((entry = table_next(&server->streams, entry))) {
		struct stream *stream = list_entry(entry, struct stream, entry);

		if (server->config->streams.flush_after <= 0)
			list_remove(&stream->unflushed);
		stream_flush_later(server, stream);
		saving_release(server, stream); /* it may not be due any longer */
		if (stream->phase != STREAM_LOADING && stream->feeder && stream->feeder->router)
			list_add(&server->dirty, &stream->dirty); /* the ack tells the credit */
	}
}

/* Does the file of keys let in others than before, or for something else? */
static bool keys_differ(const struct rights *old, const struct rights *fresh)
{
	if (!old || !fresh || rights_users(old) != rights_users(fresh))
		return old || fresh;
	for (unsigned user = 1; user <= rights_users(old); user++) {
		if (rights_known(old, user) != rights_known(fresh, user))
			return true;
		for (enum right right = RIGHT_WRITE; right <= RIGHT_CONTROL; right++)
			if (!rights_same(old, fresh, user, right))
				return true;
	}
	return false;
}

static int reload_quietly(struct server *server, struct config_change changes[CONFIG_CHANGES_MAX], size_t *ret_n,
			  struct error *err)
{
	struct rights *rights = NULL;
	struct key_pair pair;
	struct config fresh;
	size_t n;
	int rc = config_load(&fresh, server->source, err);

	if (!rc)
		rc = check(server, &fresh, err);
	if (!rc)
		rc = security_read(&fresh, server->security.rights, &pair, &rights, err);
	explicit_bzero(&pair, sizeof pair);
	if (!rc) {
		n = config_compare(server->config, &fresh, changes);
		if (!strcmp(server->config->security.authorized_keys, fresh.security.authorized_keys) &&
		    keys_differ(server->security.rights, rights))
			changes[n++] = (struct config_change){ "security.authorized_keys", true };
		rc = take_over(server, &fresh, err);
	}
	if (rc)
		config_locate(&fresh, err);
	config_free(&fresh);
	if (rc) {
		rights_free(rights);
		return rc;
	}
	if (server->security.zap)
		security_replace(server, rights);
	apply(server);
	*ret_n = n;
	return 0;
}

int reload(struct server *server, struct config_change changes[CONFIG_CHANGES_MAX], size_t *ret_n, struct error *err)
{
	int rc;

	service_reloading(server);
	rc = reload_quietly(server, changes, ret_n, err);
	service_ready(server);
	if (rc) {
		log_error("reload: nothing is changed: %s", err->text);
		return rc;
	}
	for (size_t i = 0; i < *ret_n; i++)
		log_notice("reload: %s %s", changes[i].name, changes[i].live ? "is changed" : "needs a restart");
	log_notice("reloaded");
	return 0;
}
