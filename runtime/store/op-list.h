/* A queue of operations, linked through their own next. Belongs to whoever has it, with its lock if it has
 * one. */
#ifndef RUNTIME_STORE_OP_LIST_H
#define RUNTIME_STORE_OP_LIST_H

#include "runtime/store.h"

struct op_list {
	struct store_op *first, **end;
};

void op_list_init(struct op_list *l);
void op_list_add(struct op_list *l, struct store_op *op);
/* The first, which there must be. */
struct store_op *op_list_pop(struct op_list *l);
/* Makes op the first. */
void op_list_put_back(struct op_list *l, struct store_op *op);
/* Takes them all. NULL: there are none. */
struct store_op *op_list_take(struct op_list *l);

#endif
