"""From prompts to texts: ``runformer.predict.run.predict`` is the way in, ``engine.Generator`` its heart."""
