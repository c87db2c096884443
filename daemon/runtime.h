/*
 * Where a daemon and its mamba2ctl meet when nobody says where: ipc://FOLDER/control with the first of
 * $RUNTIME_DIRECTORY (as systemd sets it), /run/mamba2d for root, $XDG_RUNTIME_DIR/mamba2d, /tmp/mamba2d-UID.
 */
#ifndef DAEMON_RUNTIME_H
#define DAEMON_RUNTIME_H

#include <stddef.h>

#include "model/error.h"

/* For the daemon: write the address to buffer.  The folder is made, for its owner only, if need be; it must be ours. */
int runtime_control_address(char *buffer, size_t size, struct error *err);

/*
 * For mamba2ctl: the folder has to be there, and be ours; root also asks the daemon of the user that systemd gave its
 * service.
 */
int runtime_find_control(char *buffer, size_t size, struct error *err);

#endif
