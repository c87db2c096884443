/*
 * systemd: what the service manager is told, and lines for the journal.  In a build without libsystemd, or where no
 * systemd listens, all of it does nothing.
 */
#ifndef DAEMON_SYSTEMD_H
#define DAEMON_SYSTEMD_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Does a service manager listen? */
bool systemd_listens(void);

/* Tell it: assignments as in sd_notify(3), one a line. */
void systemd_notify(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* Microseconds within which it wants to hear WATCHDOG=1 again and again; 0: it does not. */
uint64_t systemd_watchdog_us(void);

/* Is stderr the journal? */
bool systemd_journal(void);

/* Write one line to it: priority as in syslog, and fields STREAM and CODE where they are not NULL. */
void systemd_log(int priority, const char *text, const char *stream, const char *code);

#endif
