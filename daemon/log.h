/*
 * The daemon's log: one line an event on stderr, with the time, and with journald's priority prefix ("<4>") before it
 * unless stderr is a terminal; where stderr is the journal itself, with fields that say what the line is about.
 * Only daemon/ logs; model, gpu and protocol return errors.
 */
#ifndef DAEMON_LOG_H
#define DAEMON_LOG_H

#include <stdbool.h>
#include <stddef.h>

#include "protocol/streamid.h"

enum log_level { LOG_LEVEL_ERROR, LOG_LEVEL_WARNING, LOG_LEVEL_NOTICE, LOG_LEVEL_INFO, LOG_LEVEL_DEBUG };

#define LOG_TEXT_MAX (STREAMID_TEXT_MAX + 1000) /* of a line; what is longer is cut */

/* Lines above this level are not written.  The default is LOG_LEVEL_INFO. */
void log_set_level(enum log_level level);
bool log_enabled(enum log_level level);

void log_line(enum log_level level, const char *format, ...) __attribute__((format(printf, 2, 3)));

/*
 * The same about a stream [size], which the line names first, or with a code of PROTOCOL.md, or both: fields STREAM and
 * CODE in the journal.
 */
struct log_about {
	const void *stream;
	size_t stream_size; /* 0: about none */
	const char *code;   /* NULL: without one */
};
void log_about(enum log_level level, const struct log_about *about, const char *format, ...)
	__attribute__((format(printf, 3, 4)));

#define log_error(...) log_line(LOG_LEVEL_ERROR, __VA_ARGS__)
#define log_warning(...) log_line(LOG_LEVEL_WARNING, __VA_ARGS__)
#define log_notice(...) log_line(LOG_LEVEL_NOTICE, __VA_ARGS__)
#define log_info(...) log_line(LOG_LEVEL_INFO, __VA_ARGS__)
#define log_debug(...) log_line(LOG_LEVEL_DEBUG, __VA_ARGS__)

/*
 * A tap for lines that a peer can cause: true at most burst times a second, and then log_tap_missed says how many were
 * held back since the last true one.
 */
struct log_tap {
	long second;
	unsigned passed, held, missed;
};
bool log_tap_open(struct log_tap *tap, unsigned burst);

#endif
