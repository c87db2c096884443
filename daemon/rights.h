/*
 * The file of authorised keys: whom to let in, and what each may do.  A line is a name, a key and rights:
 *
 *	# who     public key                               rights
 *	gate-7    rq:rM>}U?@Lns47E1%kR.o@n%FcmmsL/@{H8]yf7 write=sensor-7/ read=sensor-7/
 *	board     Yne@$w-vo<fVvi]a<NY6T1ed:M$fCG*[IaLV{hID read
 *	operator  tX^)FS/HT&s8k6rWO(k{0(z.&MfLFjZ5M]Q5jvP1 control write read
 *
 * A right is write, read or control of all streams, or of those whose id begins with what stands behind "="; it may be
 * given several times.  Prefixes are written as streamid.h says.  Control of all is also needed for what concerns no
 * stream (drain, reload), any control suffices for status.
 *
 * Keys are known by number.  A number is never given to another key, also not by reading the file anew.
 */
#ifndef DAEMON_RIGHTS_H
#define DAEMON_RIGHTS_H

#include <stdbool.h>
#include <stddef.h>

#include "model/error.h"
#include "protocol/keys.h"
#include "protocol/message.h"

enum right { RIGHT_WRITE, RIGHT_READ, RIGHT_CONTROL };
#define N_RIGHTS 3

struct rights;

struct prefix {
	size_t size;
	unsigned char bytes[MESSAGE_STREAM_MAX];
};

/*
 * Read the file.  Keys that old knows (NULL: none) keep their numbers; old stays as it is.  Errors name file and line.
 * Free with rights_free; NULL is fine.
 */
int rights_read(const char *path, const struct rights *old, struct rights **ret_rights, struct error *err);
void rights_free(struct rights *rights);

size_t rights_count(const struct rights *rights); /* keys that are authorised */
unsigned rights_users(const struct rights *rights); /* the highest number that a key has or had */

/* The number of an authorised key, or ENDPOINT_NOBODY. */
unsigned rights_find(const struct rights *rights, const unsigned char key[KEY_BYTES]);

/* Is the user's key still authorised?  So is whoever needs none. */
bool rights_known(const struct rights *rights, unsigned user);
const char *rights_name(const struct rights *rights, unsigned user); /* as the file has it; "" if it has none */

/* May the user do this to all streams whose id begins with id, so to the stream id itself? */
bool rights_allow(const struct rights *rights, unsigned user, enum right right, const void *id, size_t size);

/* The prefixes that a user has a right to; *ret_n of them.  For those who need no key it is the empty one. */
const struct prefix *rights_prefixes(const struct rights *rights, unsigned user, enum right right, size_t *ret_n);

/* Has a user the same prefixes of a right in both? */
bool rights_same(const struct rights *a, const struct rights *b, unsigned user, enum right right);

#endif
