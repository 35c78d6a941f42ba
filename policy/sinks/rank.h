/*
 * The classes between raw and plain: of a chunk's tokens that are coded, the ones that get most attention are
 * coded finer (salient), the ones that get least coarser (redundant). What counts is the attention that was
 * seen asking for a token, on average over queries; where none was seen, what the detector foretells. Pure.
 */
#ifndef POLICY_SINKS_RANK_H
#define POLICY_SINKS_RANK_H

#include <stddef.h>
#include <stdint.h>

/* attention: [n_tokens], more is more; NAN: not known, the token stays plain. Of the tokens that are
 * TOKEN_PLAIN, the shares (of all tokens that are; together at most 1) at either end become TOKEN_SALIENT and
 * TOKEN_REDUNDANT; of equal ones the earlier first. */
void sinks_rank(const float *attention, size_t n_tokens, double salient_share, double redundant_share,
	uint8_t *classes);

#endif
