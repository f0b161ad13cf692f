"""What a comparison puts beside the method: other things that can be trained, on the same pivots or on solutions.

`methods` names them all; `start` makes what is trained before its first step: rows of other circuits (`circuits`), a
bias or a steering vector (`vectors`), LoRA (`lora`); `fine_tuning` trains LoRA or all weights on worked solutions.
"""
