"""The method of the paper (arXiv 2512.16914), to be read from top to bottom.

1. `traces`: for each problem a greedy trace and a sampled one of opposite correctness (section 3.1).
2. `pivots`: the token at which the outcome turns (section 3.1).
3. `objective`: the loss of stages 2 and 3.
4. `circuit`: gates that are learned at pivots, and the circuit that they leave (section 3.2); `prefixes` is what makes
   a step cost one token, `density` looks for the penalty that leaves a circuit of a wanted size.
5. `update`: change the circuit's rows alone, keep the best validated step (section 3.3); `course` is early stopping.
6. `rounds`: all of it again from the updated model.

`processes` lets several processes do stages 2 and 3 together.

`options` holds what can be set of each. Nothing here knows a run folder or a config.
"""
