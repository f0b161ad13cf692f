"""What leaves a run: a merged model, a delta, an adapter, data sets, and what they say of themselves."""
