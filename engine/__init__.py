"""An event-driven task engine: Kafka events become Dask task graphs, every state change goes back onto Kafka."""
