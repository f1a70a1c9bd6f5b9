"""What the numbers of `summary.json` mean, by section and by the key each is reported under."""

_PERCENTILE = "The smallest entropy, in nats, that at least {} of tokens do not exceed; not interpolated."
_GROUP = {"correct": "Responses whose answer is right.", "incorrect": "Responses whose answer is wrong."}

DEFINITIONS = {
    "responses": {
        "num_responses": "Responses read.",
        "num_problems": "Different problems among them.",
        "num_correct": "Responses marked as correct; null if none is marked either way.",
        "num_other_length": (
            "Responses whose text, tokenized again, does not give the number of tokens the file states: there the "
            "analysed tokens differ from the sampled ones. Null if the file states no lengths."
        ),
        "temperature": "Temperature inside the softmax of every entropy and probability.",
    },
    "distribution": {
        "num_tokens": "Completion tokens, end tokens included; prompts are not counted.",
        "mean": "Mean entropy over all tokens, in nats.",
        "fraction_below_0.01": "Fraction of tokens whose entropy is below 0.01 nats (paper, Fig. 2a: 0.5064).",
        "p50": _PERCENTILE.format("50 %"),
        "p80": _PERCENTILE.format("80 %") + " (Paper, Fig. 2a: 0.672.)",
        "p95": _PERCENTILE.format("95 %"),
        "histogram": "Tokens by entropy, in bins of equal width.",
        "edges": "Limits of the bins, in nats; a bin includes its lower limit, and the last its upper one too.",
        "counts": "Tokens in each bin.",
    },
    "tokens": {
        "min_count": "Token types sampled more often than this are listed (paper, Fig. 2b: 100).",
        "num_types": "Number of token types sampled that often.",
        "top": "The types of largest mean entropy, falling; ties to the smaller token id.",
        "bottom": "The types of smallest mean entropy, rising.",
        "token": "Text of the token.",
        "token_id": "Its number in the vocabulary.",
        "mean_entropy": (
            "Mean, over all positions where this token was sampled, of the entropy of the distribution it was sampled "
            "from, in nats."
        ),
        "count": "Number of times it was sampled; in `followed_by`, after this token.",
        "followed_by": "Most frequent next tokens in the same response.",
        "alternatives": "Other likely tokens where this one was sampled.",
        "mean_probability": (
            "Mean over these positions, in the responses whose five most likely tokens were kept; beyond these five a "
            "probability counts as 0."
        ),
        "examples": "Positions drawn uniformly from all of this type (reservoir sampling).",
        "before": "Text before it.",
        "after": "Text after it.",
        "entropy": "Entropy of the distribution it was sampled from, in nats.",
        "response": "Number of the response, from 0.",
        "position": "Number of the token in the response, from 0.",
    },
    "overlap": {
        "fraction": "rho, the fraction of positions that are compared.",
        "models": "Reference, checkpoints in the order given, model.",
        "with_reference": "Positions shared with the reference model (paper, Table 1, first row).",
        "with_model": "Positions shared with the model (paper, Table 1, second row).",
        "whole_set": (
            "Fraction of the ceil(rho * N) positions of largest entropy among the N tokens of all responses that the "
            "other model shares; ties to the earlier token. (The paper does not state its pool.)"
        ),
        "per_response": "The same with ceil(rho * n) positions of each response of n tokens, summed over responses.",
        "expected_by_chance": "Share of two independent random selections: the fraction that is selected.",
    },
    "change": {
        "models": "Checkpoints in the order given, model; each against the reference.",
        "bins": (
            "Tokens in the order of their entropy under the reference, cut into twenty bins of equal count (paper, "
            "Fig. 4). Equal entropies, 0 above all, are cut in the order of the file: bins that share one value as "
            "reference_min and reference_max differ by chance only."
        ),
        "percentiles": "Limits of the bin, in percent of the tokens.",
        "num_tokens": "Tokens in the bin.",
        "reference_min": "Smallest entropy under the reference in the bin, in nats.",
        "reference_max": "Largest entropy under the reference in the bin, in nats.",
        "mean_change": "Mean of entropy under the model minus entropy under the reference, in nats.",
        "fraction_increased": "Fraction of the tokens whose entropy is higher than under the reference.",
        "fraction_decreased": "Fraction of the tokens whose entropy is lower; the rest has the same float32 value.",
    },
    "percentiles": {
        "levels": "Levels of the percentiles, as fractions of the tokens (paper, Fig. 5).",
        "models": "Reference, checkpoints in the order given, model.",
        "values": (
            "The smallest entropy, in nats, that at least this fraction of tokens does not exceed; at level 0 the "
            "smallest of all."
        ),
    },
    "position": {
        "all": "All responses.",
        **_GROUP,
        "mean_entropy": (
            "Mean entropy, in nats, of the tokens in each of twenty bins of relative position (t + 1/2) / n, for "
            "token t = 0, 1, ... of a response of n tokens; null for an empty bin."
        ),
        "selected_fraction": "Fraction of the tokens of each bin that is among the top 20 % of the whole set.",
        "num_tokens": "Tokens in each bin.",
    },
    "length": {
        "mean": "Mean number of tokens of a response.",
        "pearson_with_mean_entropy": (
            "Pearson's correlation, over responses, of length and mean entropy; null where one is constant."
        ),
        "spearman_with_mean_entropy": "The same of their ranks; equal values share the mean of theirs.",
    },
    "correctness": {
        **_GROUP,
        "num_responses": "Responses of the group with at least one token.",
        "num_tokens": "Their tokens.",
        "mean_length": "Mean number of tokens.",
        "mean_entropy": "Mean over tokens, in nats.",
        "mean_response_entropy": "Mean over responses of their mean entropy, in nats.",
        "selected_fraction": "Fraction of their tokens that is among the top 20 % of the whole set.",
        "mean_high_entropy_sum": "Mean over responses of the sum of their ceil(0.5 %) largest entropies, in nats.",
    },
    "scope": {
        "selected_fraction_of_responses": (
            "Percentiles, over responses, of the fraction of a response's tokens that is selected when the top 20 % "
            "of the whole set is (scope `batch`). With scope `sequence` it is 20 % of each."
        ),
        "p0": "Smallest fraction.",
        "p5": "The smallest fraction that at least 5 % of responses do not exceed.",
        "p50": "The smallest fraction that at least 50 % of responses do not exceed.",
        "p95": "The smallest fraction that at least 95 % of responses do not exceed.",
        "p100": "Largest fraction.",
        "batch_and_sequence_overlap": (
            "Fraction of the positions selected from the whole set that are also selected response by response."
        ),
    },
    "loops": {
        "fraction": (
            "rho, the fraction of positions that is compared; of resolved and late forks, their part of all tokens."
        ),
        "loops": "The loops, first to last. The last is the one that tokens are drawn from.",
        "loop": "Number of the loop, from 1.",
        "mean_entropy": (
            "Mean over all tokens of the entropy after this loop, in nats; in `bins`, of the entropy after the last."
        ),
        "p50": _PERCENTILE.format("50 %"),
        "p80": _PERCENTILE.format("80 %"),
        "p95": _PERCENTILE.format("95 %"),
        "fraction_below_0.01": "Fraction of tokens whose entropy is below 0.01 nats.",
        "overlap_with_last": "Positions of largest entropy that the loop shares with the last one.",
        "whole_set": (
            "Fraction of the ceil(rho * N) positions of largest entropy after the last loop, among the N tokens of "
            "all responses, that are so after this loop too; ties to the earlier token."
        ),
        "per_response": "The same with ceil(rho * n) positions of each response of n tokens, summed over responses.",
        "resolved": (
            "Positions among the ceil(rho * N) of largest entropy after the first loop and not after the last."
        ),
        "late": (
            "Positions among the ceil(rho * N) of largest entropy after the last loop and not after the first: always "
            "as many as resolved ones."
        ),
        "num_tokens": "Such positions; in `bins`, tokens of the bin.",
        "tokens": "The token types most frequent there, falling; ties to the smaller token id.",
        "token": "Text of the token.",
        "token_id": "Its number in the vocabulary.",
        "count": "Such positions at which it was sampled.",
        "share": "Their part of all positions at which it was sampled.",
        "mean_entropy_first": "Mean over these positions of the entropy after the first loop, in nats.",
        "mean_entropy_last": "Mean over these positions of the entropy after the last loop, in nats.",
        "exit": (
            "Where the exit gate would leave the loops. It is read at the position that predicts a token. The "
            "responses themselves come from the last loop."
        ),
        "probabilities": "Mean over all tokens of the probability to leave after each loop.",
        "mean_depth": "Mean over tokens of the expected number of loops, sum_t t p_t.",
        "spearman_with_entropy": (
            "Correlation, over tokens, of the ranks of expected number of loops and entropy; null where one is "
            "constant."
        ),
        "first_loop": "With the entropy after the first loop.",
        "last_loop": "With the entropy after the last loop.",
        "bins": "Tokens in the order of their entropy after the last loop, cut into twenty bins of equal count.",
    },
    "credit": {
        "trained_on": "The tokens that the rules of `--token_credit` give weight to.",
        "num_responses": "Responses weighed, those of the page.",
        "progress": "Share of the training that is done, on which a schedule depends; null without one.",
        "selected_fraction": "Fraction of their tokens that has weight.",
        "effective_fraction": (
            "(sum w)^2 / (N sum w^2) of the weights of their N tokens: 1 for equal weights, the fraction of tokens "
            "that has weight for a selection."
        ),
        "weight_max": "The largest weight, after the denominator `selected`: N / W times what the rules give.",
        "positive_share": (
            "Part of the sum of w |A| where the advantage A is positive; null without advantages. A is the reward "
            "(`reward`, or 1 for a correct response) less the mean over the responses to the problem, over their "
            "standard deviation."
        ),
        "span_found": "Fraction of the responses in which the pattern of the rule `span` matches; null without it.",
    },
    "decoding_temperature": {
        "threshold": "Entropy at temperature 1, in nats, above which a token is a forking token.",
        "num_samples": "Responses per problem and pair of temperatures.",
        "num_problems": "Problems.",
        "cells": "Pairs of temperatures; one of the two is 1 (paper, Fig. 3).",
        "forking_temperature": "Temperature of forking tokens, T_high.",
        "other_temperature": "Temperature of all other tokens, T_low.",
        "accuracy": "Mean over problems of the fraction of right answers.",
        "standard_error": "Standard error of the accuracy over problems; null for a single one.",
        "mean_length": "Mean number of tokens of a response.",
    },
}
