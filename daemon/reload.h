/*
 * A reload: the configuration is read again from where it came, checked whole, and what is live of it applied.
 */
#ifndef DAEMON_RELOAD_H
#define DAEMON_RELOAD_H

#include "daemon/config.h"

struct server;

/*
 * Reload, and log what came of it.  changes: the keys that differed; those that are not live keep their running value
 * until a restart.  An error names the mistake, and nothing has changed.
 */
int reload(struct server *server, struct config_change changes[CONFIG_CHANGES_MAX], size_t *ret_n, struct error *err);

#endif
