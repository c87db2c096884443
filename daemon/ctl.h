/*
 * The subcommands of mamba2ctl.  Each gets its own arguments (argv[0] is its name) and returns an exit status.
 */
#ifndef DAEMON_CTL_H
#define DAEMON_CTL_H

#include "model/error.h"

enum ctl_status {
	CTL_OK = 0,
	CTL_FAILED = 1,     /* the work failed; stderr says why */
	CTL_USAGE = 2,      /* the command line is wrong */
	CTL_NO_DAEMON = 3,  /* nobody answered */
	CTL_REFUSED = 4     /* the daemon refused; stderr says why */
};

int ctl_encode(int argc, char **argv);  /* ctl_encode.c */
int ctl_send(int argc, char **argv);    /* ctl_rows.c */
int ctl_recv(int argc, char **argv);    /* ctl_rows.c */
int ctl_request(int argc, char **argv); /* ctl_request.c: all the others */

/* Print "mamba2ctl NAME: text" to stderr and return status. */
int ctl_fail(const char *name, int status, const struct error *error);

/* As ctl_fail with CTL_USAGE, pointing to --help. */
int ctl_usage(const char *name, const char *what);

#endif
