/*
 * The subcommands of mamba2ctl.  Each gets its own arguments (argv[0] is its name) and returns an exit status.
 */
#ifndef DAEMON_CTL_H
#define DAEMON_CTL_H

#include <stdbool.h>

#include "model/error.h"
#include "protocol/client.h"

enum ctl_status {
	CTL_OK = 0,
	CTL_FAILED = 1,     /* the work failed; stderr says why */
	CTL_USAGE = 2,      /* the command line is wrong */
	CTL_NO_DAEMON = 3,  /* nobody answered */
	CTL_REFUSED = 4     /* the daemon refused; stderr says why */
};

int ctl_encode(int argc, char **argv);  /* ctl_encode.c */
int ctl_send(int argc, char **argv);    /* ctl_send.c */
int ctl_recv(int argc, char **argv);    /* ctl_recv.c */
int ctl_keygen(int argc, char **argv);  /* ctl_keys.c */
int ctl_top(int argc, char **argv);     /* ctl_top.c */
int ctl_request(int argc, char **argv); /* ctl_request.c: all the others */

/* The key files that commands which connect are given: rows for a getopt table, and what the options set. */
#define CTL_KEY_OPTIONS { "key", required_argument, NULL, 'K' }, { "server-key", required_argument, NULL, 'S' }
struct ctl_keys {
	const char *key, *server_key; /* paths; NULL: not given */
};
bool ctl_keys_option(struct ctl_keys *keys, int option, const char *argument); /* false: it is none of these */

/* As client_new, with the keys in these files if they were given. */
int ctl_connect(enum client_kind kind, const char *address, const struct ctl_keys *keys, struct client **ret_client,
		struct error *err);

/* A client of the control socket at address; NULL: that of the daemon of this user. */
int ctl_connect_control(const char *address, const struct ctl_keys *keys, struct client **ret_client,
			struct error *err);

/* Print why a request was refused and return CTL_REFUSED; CTL_OK if it was not. */
int ctl_refused(const char *name, const struct control *answer);

/* Print "mamba2ctl NAME: text" to stderr and return status. */
int ctl_fail(const char *name, int status, const struct error *error);

/* As ctl_fail with CTL_USAGE, pointing to --help. */
int ctl_usage(const char *name, const char *what);

#endif
