/*
 * Stream ids for people: any bytes on the wire, text on a terminal, in a log line and on a command line.
 */
#ifndef PROTOCOL_STREAMID_H
#define PROTOCOL_STREAMID_H

#include <stddef.h>

#include "model/error.h"
#include "protocol/message.h"

#define STREAMID_TEXT_MAX (2 * MESSAGE_STREAM_MAX + 3) /* with the NUL */

/*
 * Write id [size] as text: itself where it is printable UTF-8 and does not start with "0x", else "0x" and its bytes in
 * hex.  Ids longer than MESSAGE_STREAM_MAX are cut.  Returns text.
 */
const char *streamid_format(const void *id, size_t size, char text[STREAMID_TEXT_MAX]);

/* The reverse: id [MESSAGE_STREAM_MAX].  ERR_ARGUMENT if it is empty or too long, or broken hex. */
int streamid_parse(const char *text, void *id, size_t *ret_size, struct error *err);

#endif
