/*
 * The error codes of PROTOCOL.md by name.  Refusals count down from ERR_REFUSED, so that one is an index into the
 * table once turned round.
 */
#include "protocol/refusal.h"

#include <string.h>

static const char *const names[REFUSAL_COUNT] = {
	"bad_version", "bad_header", "bad_shape", "bad_dtype", "bad_size", "bad_token", "non_finite", "gap",
	"no_credit", "stale_epoch", "closed", "too_many_streams", "shutting_down", "state_damaged", "denied", "internal"
};

const char *refusal_name(int code)
{
	return names[refusal_index(code)];
}

int refusal_index(int code)
{
	if (code > ERR_REFUSED || code < REFUSED_INTERNAL)
		code = REFUSED_INTERNAL;
	return ERR_REFUSED - code;
}

int refusal_find(const char *name, size_t length)
{
	for (int i = 0; i < REFUSAL_COUNT; i++)
		if (strlen(names[i]) == length && memcmp(names[i], name, length) == 0)
			return ERR_REFUSED - i;
	return REFUSED_INTERNAL;
}
