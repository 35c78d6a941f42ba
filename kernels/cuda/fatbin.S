/* The fatbin as data of the program: FATBIN is its path, SYMBOL its name. The driver wants it aligned to 8 bytes. */
	.section .rodata
	.balign 64
	.global SYMBOL
SYMBOL:
	.incbin FATBIN
	.section .note.GNU-stack, "", %progbits
