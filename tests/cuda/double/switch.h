/*
 * Switching between stacks of one OS thread. On x86-64 by hand, for swapcontext makes a system call each
 * time; elsewhere by ucontext. AddressSanitizer is told.
 */
#ifndef TESTS_CUDA_DOUBLE_SWITCH_H
#define TESTS_CUDA_DOUBLE_SWITCH_H

#include <stddef.h>

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

/* A stack that was left for good still has the red zones of the frames that were on it. */
static inline void stack_clear(char *stack, size_t len)
{
#ifdef __SANITIZE_ADDRESS__
	__asan_unpoison_memory_region(stack, len);
#else
	(void)stack;
	(void)len;
#endif
}

#ifdef __x86_64__

struct stack_context {
	void *sp;
};

extern "C" void stack_context_switch(void **save, void *load);
/* What the ABI has a function keep lies on the stack that is left (System V x86-64 psABI, 3.2.1). */
asm(R"(
.text
.p2align 4
.type stack_context_switch, @function
stack_context_switch:
	pushq %rbp
	pushq %rbx
	pushq %r12
	pushq %r13
	pushq %r14
	pushq %r15
	movq %rsp, (%rdi)
	movq %rsi, %rsp
	popq %r15
	popq %r14
	popq %r13
	popq %r12
	popq %rbx
	popq %rbp
	ret
.size stack_context_switch, . - stack_context_switch
)");

static inline void stack_context_make(struct stack_context *c, char *stack, size_t len, void (*entry)())
{
	/* As after a call: where entry's return address would be, which never returns, is one word below a
	 * multiple of 16. */
	void **sp = reinterpret_cast<void **>(stack + len) - 1;

	stack_clear(stack, len);
	*sp = nullptr;
	*--sp = reinterpret_cast<void *>(entry);
	for (int i = 0; i < 6; i++)
		*--sp = nullptr;
	c->sp = sp;
}

static inline void stack_context_swap(struct stack_context *from, struct stack_context *to)
{
	stack_context_switch(&from->sp, to->sp);
}

#else
#include <ucontext.h>

struct stack_context {
	ucontext_t context;
};

static inline void stack_context_make(struct stack_context *c, char *stack, size_t len, void (*entry)())
{
	stack_clear(stack, len);
	getcontext(&c->context);
	c->context.uc_stack.ss_sp = stack;
	c->context.uc_stack.ss_size = len;
	c->context.uc_link = nullptr;
	makecontext(&c->context, entry, 0);
}

static inline void stack_context_swap(struct stack_context *from, struct stack_context *to)
{
	swapcontext(&from->context, &to->context);
}
#endif

#endif
