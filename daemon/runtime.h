/*
 * Where a daemon and its mamba2ctl meet when nobody says where.
 */
#ifndef DAEMON_RUNTIME_H
#define DAEMON_RUNTIME_H

#include <stddef.h>

#include "model/error.h"

/*
 * Write the control socket's default address to buffer: ipc://FOLDER/control with the first of $RUNTIME_DIRECTORY (as
 * systemd sets it), /run/mamba2d for root, $XDG_RUNTIME_DIR/mamba2d, /tmp/mamba2d-UID; the folder is made, for its
 * owner only, if need be.
 */
int runtime_control_address(char *buffer, size_t size, struct error *err);

#endif
