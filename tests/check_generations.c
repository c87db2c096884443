/*
 * The rule of daemon/generations.h by itself: a model of one stream, its daemon and an honest peer is driven through
 * every order of accepting, emitting, delivering, confirming, saving, failing, being killed at any point of a write,
 * and resuming.  Whatever happens, no state to resume from is behind the `durable` that was told, and none counts a
 * hidden state as emitted that the peer lacks.
 */
#include <stdio.h>
#include <string.h>

#include "daemon/generations.h"
#include "tests/suite.h"

#define WINDOW 2
#define ROWS_MAX 7           /* of the stream in the model */
#define UNHEARD_MAX 6        /* runs of the daemon in a row in which the peer does not open its stream */
#define STATES_MAX (1u << 21) /* of the model, at most looked at */

/* What is on disk is what is in `disk`; all numbers are small, so that states can be compared as bytes. */
struct world {
	unsigned char next, computed, emitted;  /* the daemon's stream */
	unsigned char base;                     /* emitted when the stream came to memory: what it emits begins here */
	unsigned char got;                      /* what the daemon knows of it */
	unsigned char have;                     /* hidden states that the peer really has, */
	unsigned char told;                     /* and the durable that it was told */
	unsigned char writing;                  /* a write is under way */
	unsigned char unheard;                  /* runs, up to this one, in which the peer has not opened its stream */
	unsigned char n;
	struct {
		unsigned char known, doomed, reach, emitted, got;
	} item[GENERATIONS_MAX + 1]; /* n of them, and the one that is being written */
};

enum step {
	ACCEPT, EMIT, DELIVER, CONFIRM, SAVE, WRITTEN, FAIL, REOPEN,
	/* Killed before the new file is there, before the doomed ones are gone, after all; then the peer opens: */
	KILL_BEFORE, KILL_BETWEEN, KILL_AFTER,
	/* or rows come first, and later perhaps an open: */
	KILL_BEFORE_DATA, KILL_BETWEEN_DATA, KILL_AFTER_DATA,
	STEPS
};

static const char *const names[STEPS] = {
	"accept", "emit", "deliver", "confirm", "save", "written", "fail", "open again",
	"killed before the file, open", "killed after the file, open", "killed after all, open",
	"killed before the file, rows", "killed after the file, rows", "killed after all, rows",
};

static size_t keep;
static bool reply;

/* How the worlds that were seen came about, and the step being taken. */
static struct { uint32_t before; enum step step; } *origin;
static uint32_t taking_from;
static enum step taking;

/* A promise was broken: by what steps? */
static void broken(const char *promise, int is, int expected)
{
	char text[4096] = "";
	enum step step = taking;

	for (uint32_t i = taking_from;; i = origin[i].before) {
		char longer[4096];

		snprintf(longer, sizeof longer, "%s; %.4000s", names[step], text);
		memcpy(text, longer, sizeof text);
		if (!i)
			break;
		step = origin[i].step;
	}
	ck_abort_msg("%s: %d, %d, after: %s", promise, is, expected, text);
}

/* --- the model's generations and the real ones --- */

static struct generation real_one(const struct world *world, size_t i)
{
	return (struct generation){
		.number = i + 1, .known = world->item[i].known, .doomed = world->item[i].doomed,
		.reach = world->item[i].reach, .emitted = world->item[i].emitted,
	};
}

static struct generations real(const struct world *world)
{
	struct generations generations = { .n = 0 };

	for (size_t i = 0; i < world->n; i++)
		generations_add(&generations, &(struct generation){ .number = i + 1 });
	for (size_t i = 0; i < world->n; i++)
		generations.item[i] = real_one(world, i);
	return generations;
}

static void remove_item(struct world *world, size_t i)
{
	memmove(&world->item[i], &world->item[i + 1], (GENERATIONS_MAX - i) * sizeof world->item[0]);
	memset(&world->item[GENERATIONS_MAX], 0, sizeof world->item[0]);
	world->n--;
}

/* --- the daemon: what saving.c, store.c and resuming.c do with a stream --- */

static void save(struct world *world)
{
	struct generations generations = real(world);
	struct generation newest;

	world->writing = 1;
	world->item[world->n].known = 1;
	world->item[world->n].reach = world->next;
	if (world->next - world->computed >= WINDOW)
		world->item[world->n].reach = (unsigned char)(world->computed + WINDOW - 1);
	world->item[world->n].emitted = world->emitted;
	world->item[world->n].got = world->got;
	newest = real_one(world, world->n);
	generations_doom(&generations, &newest, keep, reply, world->got);
	for (size_t i = 0; i < world->n; i++)
		world->item[i].doomed = generations.item[i].doomed;
}

static void written(struct world *world)
{
	size_t n = world->n, kept = 0;

	world->n++;
	for (size_t i = 0; i < n; i++) {
		if (world->item[kept].doomed)
			remove_item(world, kept);
		else
			kept++;
	}
	world->writing = 0;
	ck_assert_uint_lt(world->n, GENERATIONS_MAX);
}

static void failed(struct world *world)
{
	world->writing = 0;
	memset(&world->item[world->n], 0, sizeof world->item[0]);
	for (size_t i = 0; i < world->n; i++)
		world->item[i].doomed = 0;
}

/* The stream goes on from generation i, or from position 0. */
static void load(struct world *world, size_t i, bool found)
{
	world->next = found ? world->item[i].reach : 0;
	world->computed = world->next / WINDOW * WINDOW;
	world->emitted = world->base = found ? world->item[i].emitted : 0;
	world->got = found ? world->item[i].got : 0;
}

/* open with from: the newest generation that suits; those that do not are removed on the way. */
static void rewind_to(struct world *world, unsigned char from)
{
	bool found = false;
	size_t i = world->n;

	while (!found && i-- > 0) {
		struct generation generation;

		world->item[i].known = 1;
		generation = real_one(world, i);
		found = generation_suits(&generation, 0, from);
		if (!found)
			remove_item(world, i);
	}
	load(world, i, found);
	world->got = from;
}

static void open_again(struct world *world)
{
	if (world->have < world->emitted)
		rewind_to(world, world->have);
	else
		world->got = world->have;
	world->base = world->emitted;
	if (world->next < world->told)
		broken("next is before durable", world->next, world->told);
	if (world->emitted > world->have)
		broken("more counts as emitted than the peer has", world->emitted, world->have);
}

static void crash(struct world *world)
{
	failed(world);
	for (size_t i = 0; i < world->n; i++)
		world->item[i].known = 0;
	memset(&world->next, 0, 1);
	world->computed = world->emitted = world->base = world->got = 0;
}

/* Start again: the first message is an open, or rows, which the newest state serves. */
static void start(struct world *world, bool data)
{
	if ((data || !reply) && world->n) {
		world->item[world->n - 1].known = 1;
		load(world, world->n - 1u, true);
	} else if (reply && !data) {
		rewind_to(world, world->have);
		open_again(world);
	}
	if (world->next < world->told)
		broken("next is before durable", world->next, world->told);
}

static void kill_it(struct world *world, bool new_one, bool old_ones, bool data)
{
	if (new_one && !old_ones) {
		written(world);
	} else if (new_one) {
		struct generations generations = real(world);

		if (world->n == GENERATIONS_MAX)
			remove_item(world, generations_surplus(&generations) - 1);
		world->n++;
		world->writing = 0;
	}
	world->unheard = (unsigned char)(data ? world->unheard + 1 : 0);
	crash(world);
	start(world, data);
}

/* --- all orders of all steps --- */

static bool possible(const struct world *world, enum step step)
{
	switch (step) {
	case ACCEPT:
		return world->next < ROWS_MAX;
	case EMIT:
		return world->emitted < world->next;
	case DELIVER:
		return reply && world->have < world->emitted && world->have >= world->base;
	case CONFIRM:
		return reply && world->got < world->have;
	case SAVE:
		return !world->writing && world->next;
	case WRITTEN: case FAIL: case KILL_BETWEEN: case KILL_AFTER:
		return world->writing;
	case KILL_BETWEEN_DATA: case KILL_AFTER_DATA:
		return world->writing && world->unheard < UNHEARD_MAX;
	case KILL_BEFORE_DATA:
		return world->unheard < UNHEARD_MAX;
	case REOPEN:
		return reply && (!world->writing || world->have >= world->emitted); /* a rewind waits for the write */
	default:
		return true;
	}
}

static void emit(struct world *world)
{
	if (world->next - world->computed >= WINDOW)
		world->computed = (unsigned char)(world->computed + WINDOW);
	else
		world->emitted = world->next; /* a flush */
	if (world->emitted < world->computed)
		world->emitted = world->computed;
}

static void take(struct world *world, enum step step)
{
	struct generations generations;
	uint64_t durable;

	switch (step) {
	case ACCEPT: world->next++; break;
	case EMIT: emit(world); break;
	case DELIVER: world->have++; break;
	case CONFIRM: world->got = world->have; break;
	case SAVE: save(world); break;
	case WRITTEN: written(world); break;
	case FAIL: failed(world); break;
	case REOPEN: open_again(world); world->unheard = 0; break;
	case KILL_BEFORE: case KILL_BEFORE_DATA: kill_it(world, false, true, step == KILL_BEFORE_DATA); break;
	case KILL_BETWEEN: case KILL_BETWEEN_DATA: kill_it(world, true, true, step == KILL_BETWEEN_DATA); break;
	case KILL_AFTER: case KILL_AFTER_DATA: kill_it(world, true, false, step == KILL_AFTER_DATA); break;
	case STEPS: break;
	}
	generations = real(world);
	durable = generations_durable(&generations, 0, reply, world->got);
	if (durable > world->next) /* what was being saved when the stream was rewound */
		durable = world->next;
	if (durable > world->told)
		world->told = (unsigned char)durable;
}

static uint64_t hash(const struct world *world)
{
	const unsigned char *bytes = (const unsigned char *)world;
	uint64_t h = 1469598103934665603u;

	for (size_t i = 0; i < sizeof *world; i++)
		h = (h ^ bytes[i]) * 1099511628211u;
	return h ^ h >> 29;
}

/* Every world that `depth` steps reach, breadth first, but at most `most`; returns how many there are. */
static size_t explore(size_t depth, size_t most)
{
	struct world *seen = calloc(most, sizeof *seen);
	uint32_t *slots = calloc(2 * most, sizeof *slots);
	size_t n = 1, from = 0;

	origin = calloc(most, sizeof *origin);
	ck_assert(seen && slots && origin);
	for (size_t level = 0; level < depth && n < most; level++) {
		size_t to = n;

		for (; from < to; from++)
			for (enum step step = ACCEPT; step < STEPS; step++) {
				struct world world = seen[from];
				size_t slot;

				if (!possible(&world, step))
					continue;
				taking_from = (uint32_t)from;
				taking = step;
				take(&world, step);
				for (slot = hash(&world) % (2 * most); slots[slot]; slot = (slot + 1) % (2 * most))
					if (!memcmp(&seen[slots[slot]], &world, sizeof world))
						break;
				if (slots[slot] || n == most)
					continue;
				seen[n] = world;
				origin[n].before = taking_from;
				origin[n].step = step;
				slots[slot] = (uint32_t)n++;
			}
	}
	free(seen);
	free(slots);
	free(origin);
	return n;
}

START_TEST(nothing_is_lost_in_any_order)
{
	const char *depth = getenv("MAMBA2D_DEPTH"); /* to look farther */
	size_t n;

	reply = _i % 2 == 0;
	keep = (size_t)_i / 2 + 1;
	n = explore(depth ? strtoul(depth, NULL, 10) : 12, depth ? STATES_MAX : STATES_MAX / 64);
	ck_assert_uint_gt(n, 1000);
	if (depth)
		printf("keep %zu, reply %d: %zu states\n", keep, reply, n);
}
END_TEST

/* --- examples --- */

static struct generations given(size_t n, const unsigned *emitted)
{
	struct generations generations = { .n = 0 };

	for (size_t i = 0; i < n; i++)
		generations_add(&generations, &(struct generation){
			.number = i + 1, .known = emitted[i] != 0, .emitted = emitted[i], .reach = emitted[i] + 5
		});
	return generations;
}

/* Which of the generations with these emitted positions (0: not known) go when one with `newest` comes? */
static void assert_doomed(size_t n, const unsigned *emitted, unsigned newest, size_t kept, unsigned got,
			  const char *doomed)
{
	struct generations generations = given(n, emitted);
	struct generation generation = { .number = n + 1, .known = true, .emitted = newest, .reach = newest + 5 };
	char text[GENERATIONS_MAX + 1] = "";

	generations_doom(&generations, &generation, kept, true, got);
	for (size_t i = 0; i < n; i++)
		text[i] = generations.item[i].doomed ? 'x' : '.';
	ck_assert_str_eq(text, doomed);
}

START_TEST(examples)
{
	assert_doomed(2, (unsigned[]){ 10, 20 }, 30, 2, 0, ".."); /* the one that may be confirmed first */
	assert_doomed(3, (unsigned[]){ 10, 20, 30 }, 40, 2, 0, ".x.");
	assert_doomed(3, (unsigned[]){ 10, 20, 30 }, 40, 2, 10, "...");
	assert_doomed(3, (unsigned[]){ 10, 20, 30 }, 40, 2, 29, "x..");
	assert_doomed(3, (unsigned[]){ 10, 20, 30 }, 40, 2, 30, "xx.");
	assert_doomed(3, (unsigned[]){ 10, 20, 30 }, 40, 1, 40, "xxx");
	assert_doomed(3, (unsigned[]){ 0, 0, 30 }, 40, 2, 5, "...");  /* an earlier run may have promised any */
	assert_doomed(3, (unsigned[]){ 0, 0, 30 }, 40, 2, 30, "xx.");
	assert_doomed(5, (unsigned[GENERATIONS_MAX]){ 0 }, 40, 2, 5, ".....");
	assert_doomed(6, (unsigned[GENERATIONS_MAX]){ 0 }, 40, 2, 5, "....x."); /* too many */
	assert_doomed(7, (unsigned[GENERATIONS_MAX]){ 0 }, 40, 2, 5, "....xx.");
	assert_doomed(6, (unsigned[]){ 0, 0, 0, 0, 60, 70 }, 80, 2, 5, "....x."); /* what nobody was promised first */
	assert_doomed(4, (unsigned[]){ 10, 80, 90, 20 }, 30, 2, 15, "..x."); /* they need not be in order */
	assert_doomed(4, (unsigned[]){ 10, 80, 20, 30 }, 40, 2, 15, ".x..");
	assert_doomed(3, (unsigned[]){ 10, 10, 30 }, 40, 2, 5, "x..");  /* of two alike, the one that reaches farther */
}
END_TEST

START_TEST(lives)
{
	struct generations generations = given(3, (unsigned[]){ 10, 20, 30 });
	struct generation newest = { .number = 4, .epoch = 1, .known = true, .emitted = 3, .reach = 4 };

	ck_assert_uint_eq(generations_durable(&generations, 0, true, 20), 25);
	ck_assert_uint_eq(generations_durable(&generations, 0, true, 9), 0);
	ck_assert_uint_eq(generations_durable(&generations, 0, false, 0), 35);
	ck_assert_uint_eq(generations_durable(&generations, 1, false, 0), 0);
	generations_doom(&generations, &newest, 2, true, 0);
	ck_assert(generations.item[0].doomed && generations.item[1].doomed && !generations.item[2].doomed);
	ck_assert_uint_eq(generations_durable(&generations, 0, true, 20), 0);
	generations_spare(&generations);
	ck_assert_uint_eq(generations_durable(&generations, 0, true, 20), 25);
	generations.item[0].known = false; /* it may be of the same life */
	generations_doom(&generations, &newest, 2, true, 0);
	ck_assert(!generations.item[0].doomed && generations.item[1].doomed);
}
END_TEST

/* Runs in which the peer is not heard of: whatever they save, and however they end, the first state stays. */
START_TEST(what_was_promised_outlasts_runs_without_the_peer)
{
	struct generations generations = given(1, (unsigned[]){ 10 });
	uint64_t number = 2, surplus;

	for (unsigned run = 0; run < 20; run++) {
		for (size_t i = 0; i < generations.n; i++)
			generations.item[i].known = false;
		for (unsigned save = 0; save < 3; save++, number++) {
			struct generation newest = { .number = number, .known = true, .emitted = number * 10 };
			bool killed = run % 2 && save == 2; /* between the write and the removals */

			generations_doom(&generations, &newest, 2, true, 10);
			for (size_t i = generations.n; i-- > 0 && !killed;)
				if (generations.item[i].doomed)
					generations_remove(&generations, generations.item[i].number);
			generations_spare(&generations);
			while ((surplus = generations_surplus(&generations)))
				generations_remove(&generations, surplus);
			generations_add(&generations, &newest);
		}
		ck_assert_uint_eq(generations.item[0].number, 1);
		ck_assert_uint_eq(generations.item[generations.n - 1].number, number - 1);
	}
}
END_TEST

START_TEST(without_reply)
{
	struct generations generations = given(4, (unsigned[]){ 0, 10, 20, 30 });
	struct generation newest = { .number = 5, .known = true, .emitted = 40, .reach = 41 };

	generations_doom(&generations, &newest, 2, false, 0);
	ck_assert(generations.item[0].doomed && generations.item[1].doomed && generations.item[2].doomed);
	ck_assert(!generations.item[3].doomed);
}
END_TEST

START_TEST(durable_moves_on_though_the_peer_lags)
{
	struct generations generations = { .n = 0 };
	uint64_t durable = 0, advances = 0;

	for (unsigned emitted = 10; emitted < 10000; emitted += 10) {
		uint64_t got = emitted > 500 ? emitted - 500 : 0, now;
		struct generation newest = { .number = emitted, .known = true, .emitted = emitted, .reach = emitted };

		generations_doom(&generations, &newest, 2, true, got);
		for (size_t i = generations.n; i-- > 0;)
			if (generations.item[i].doomed)
				generations_remove(&generations, generations.item[i].number);
		generations_add(&generations, &newest);
		ck_assert_uint_le(generations.n, 4);
		now = generations_durable(&generations, 0, true, got);
		ck_assert_uint_ge(now, durable);
		advances += now > durable;
		durable = now;
	}
	ck_assert_uint_ge(advances, 15);
	ck_assert_uint_ge(durable, 10000 - 500 - 600);
}
END_TEST

int main(void)
{
	Suite *suite = suite_create("generations");
	TCase *tcase = tcase_create("rule");

	tcase_set_timeout(tcase, 120);
	tcase_add_test(tcase, examples);
	tcase_add_test(tcase, lives);
	tcase_add_test(tcase, what_was_promised_outlasts_runs_without_the_peer);
	tcase_add_test(tcase, without_reply);
	tcase_add_test(tcase, durable_moves_on_though_the_peer_lags);
	tcase_add_loop_test(tcase, nothing_is_lost_in_any_order, 0, 6);
	suite_add_tcase(suite, tcase);
	return suite_run(suite);
}
