# Two images out of one file: `docker build .` makes `serve`, the dashboard without torch; `docker build --target pipeline .`
# makes the one that runs studies, and serves as well. TARGET is the same choice for builders that know no --target.
ARG TARGET=serve

FROM python:3.11-slim-bookworm AS python
ENV PATH=/opt/lineup/bin:$PATH PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore

# ---- this project, as a wheel ----
FROM python AS wheel
COPY container/build.txt /tmp/
RUN pip install --quiet --require-hashes --requirement /tmp/build.txt
COPY pyproject.toml README.md LICENSE /src/
COPY lineup.py /src/
COPY app /src/app
COPY core /src/core
COPY pipeline /src/pipeline
COPY static /src/static
COPY studies /src/studies
COPY templates /src/templates
RUN pip wheel --quiet --no-deps --no-build-isolation --wheel-dir /wheels /src

# ---- packages: exact versions, checked by hash (container/*.txt, written by `make lock`) ----
FROM python AS packages
RUN python -m venv --without-pip /opt/lineup

FROM packages AS serve-packages
COPY container/serve.txt /tmp/
RUN pip --python /opt/lineup/bin/python install --quiet --no-deps --require-hashes --requirement /tmp/serve.txt
# Of Plotly the dashboard takes plotly.js alone, of numpy no tests: 60 MB stay behind.
RUN cd /opt/lineup/lib/python3.11/site-packages && rm -r plotly/graph_objs plotly/labextension && \
    find numpy -type d -name tests -prune -exec rm -r {} +
COPY --from=wheel /wheels /wheels
RUN pip --python /opt/lineup/bin/python install --quiet --no-deps /wheels/*.whl

FROM packages AS pipeline-packages
# Where torch comes from: the address of an index, such as pytorch.org gives for CPUs or a version of CUDA; empty: pip's own.
ARG TORCH_INDEX=""
COPY container/torch.txt constraints.txt /tmp/
RUN pip --python /opt/lineup/bin/python install --quiet --constraint /tmp/constraints.txt \
    ${TORCH_INDEX:+--extra-index-url "$TORCH_INDEX"} --requirement /tmp/torch.txt
COPY container/pipeline.txt container/demo.txt /tmp/
RUN pip --python /opt/lineup/bin/python install --quiet --no-deps --require-hashes \
    --requirement /tmp/pipeline.txt --requirement /tmp/demo.txt
COPY --from=wheel /wheels /wheels
RUN pip --python /opt/lineup/bin/python install --quiet --no-deps /wheels/*.whl

# ---- what runs: nobody's root, one volume, nothing written outside it but /tmp ----
FROM python AS runtime
# A finished study file (STUDY=runs/demo.duckdb) lies in the image then, and is shown with nothing on the volume.
ARG STUDY=studies/demo.yaml
RUN useradd --uid 10001 --no-create-home --shell /usr/sbin/nologin lineup && install -d -o lineup -g lineup /data
COPY ${STUDY} /studies/
ENV HOME=/tmp USER=lineup PYTHONUNBUFFERED=1 \
    LINEUP_HOST=0.0.0.0 LINEUP_PORT=8000 LINEUP_PATHS=/data:/studies
WORKDIR /data
VOLUME /data
EXPOSE 8000
USER 10001
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s --retries=3 CMD ["lineup", "healthcheck"]
ENTRYPOINT ["lineup"]

FROM runtime AS serve
COPY --from=serve-packages /opt/lineup /opt/lineup
CMD ["serve"]

FROM runtime AS pipeline
COPY --from=pipeline-packages /opt/lineup /opt/lineup
CMD ["demo", "--runs", "/data"]

# The default twice: podman 4 does not find the stage by the ARG's.
FROM ${TARGET:-serve}
