/*
 * A doubly linked list whose links live in the elements: streams stand in several of them at once.
 * An element's link is zero-initialised; list_remove of an element that stands in no list does nothing.
 */
#ifndef DAEMON_LIST_H
#define DAEMON_LIST_H

#include <stdbool.h>
#include <stddef.h>

struct link {
	struct link *prev, *next;
};

struct list {
	struct link head; /* its next is the first element, its prev the last */
};

#define list_entry(link, type, member) ((type *)(void *)((char *)(link) - offsetof(type, member)))

static inline void list_init(struct list *list)
{
	list->head.prev = list->head.next = &list->head;
}

static inline bool link_listed(const struct link *link)
{
	return link->next != NULL;
}

static inline bool list_empty(const struct list *list)
{
	return list->head.next == &list->head;
}

static inline struct link *list_first(struct list *list)
{
	/* Who frees an element has removed it.  NOLINTNEXTLINE(clang-analyzer-unix.Malloc) */
	return list->head.next == &list->head ? NULL : list->head.next;
}

static inline struct link *list_last(struct list *list)
{
	return list->head.prev == &list->head ? NULL : list->head.prev;
}

static inline struct link *list_next(struct list *list, struct link *link)
{
	return link->next == &list->head ? NULL : link->next;
}

static inline void list_remove(struct link *link)
{
	if (!link->next)
		return;
	link->prev->next = link->next;
	link->next->prev = link->prev;
	link->prev = link->next = NULL;
}

/* Put link at the list's end; an element that stands in a list already moves. */
static inline void list_append(struct list *list, struct link *link)
{
	list_remove(link);
	link->prev = list->head.prev;
	link->next = &list->head;
	list->head.prev->next = link;
	list->head.prev = link;
}

/* Put link at the list's start; an element that stands in a list already moves. */
static inline void list_prepend(struct list *list, struct link *link)
{
	list_remove(link);
	link->next = list->head.next;
	link->prev = &list->head;
	list->head.next->prev = link;
	list->head.next = link;
}

/* Put link at the list's end unless it stands in a list already. */
static inline void list_add(struct list *list, struct link *link)
{
	if (!link_listed(link))
		list_append(list, link);
}

#endif
