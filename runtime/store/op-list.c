#include "runtime/store/op-list.h"

#include <stddef.h>

void op_list_init(struct op_list *l)
{
	*l = (struct op_list){.end = &l->first};
}

void op_list_add(struct op_list *l, struct store_op *op)
{
	op->next = NULL;
	*l->end = op;
	l->end = &op->next;
}

struct store_op *op_list_take(struct op_list *l)
{
	struct store_op *first = l->first;

	op_list_init(l);
	return first;
}

struct store_op *op_list_pop(struct op_list *l)
{
	struct store_op *op = l->first;

	l->first = op->next;
	if (!l->first)
		l->end = &l->first;
	return op;
}

void op_list_put_back(struct op_list *l, struct store_op *op)
{
	op->next = l->first;
	if (!l->first)
		l->end = &op->next;
	l->first = op;
}
