"""Training: a corpus in, a run's folder out.

settings.py    everything that decides a run; recipes.py: what is chosen where the settings leave it open
step.py        one step, and the measure of how well it goes
optimizer.py   which parameters are trained how, and the learning rate; muon.py: an optimizer of our own
backend.py     what the loop asks of the library that computes; jax_step.py: the same of JAX
dialogues.py   conversations as ids, of which the assistant's are learned
loop.py        the loop around it all
run.py         the folder that it leaves; curve.py: the picture in it
report.py      what is said meanwhile
"""
