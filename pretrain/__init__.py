"""How the bundled base was made: from npm packages of emoji art to the weights in `deltaw/zoo/emoji`.

Not part of the wheel. Every step is one command (`python -m pretrain.STEP --help`) and can be stopped
and started again; `README.md` lists the steps in order.
"""
