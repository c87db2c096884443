/*
 * A whole daemon between fakes, for tests of what goes in and comes out: fake_endpoint.h's sockets, fake_device.h's
 * device, a clock of the test's own, and a folder for states in memory.
 */
#ifndef TESTS_FAKE_DAEMON_H
#define TESTS_FAKE_DAEMON_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "daemon/server.h"

/* Put the clock forward, the daemon's as well. */
void fake_time_passes(uint64_t ns);

/* Set by a test, for as long as it is so: what is written does not get to the disk, and the daemon is told. */
extern atomic_bool fake_disk_broken;

void fake_folder_make(void);
void fake_folder_remove(void); /* with what is in it */

/*
 * Open a daemon with window 4 and a credit of 40 rows; with states it keeps them in the folder.  settings: more of
 * KEY=VALUE, up to NULL.  fake_daemon_run serves until something ends that, and frees it.  They return what server_open
 * and server_run did.
 */
int fake_daemon_open(struct server *server, bool states, const char *const *settings, struct error *err);
int fake_daemon_run(struct server *server, struct error *err);

/* A KEY=VALUE more, which a reload finds. */
void fake_daemon_set(const char *setting);

#endif
