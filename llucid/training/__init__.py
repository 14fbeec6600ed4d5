"""Training: what to do (`settings`), a step (`step`), the loop around it (`loop`), what it leaves (`run`)."""
