# The server and the bundles in bundles/: no TensorFlow, no compiler, no root.
#
#     docker build -t classifier .
#     docker run --read-only --tmpfs /tmp -p 5000:5000 classifier
#     docker run --read-only --tmpfs /tmp -p 5000:5000 classifier --model bundles/mine

FROM python:3.13-slim AS build
WORKDIR /app
COPY rest_api/requirements.lock rest_api/requirements.lock
RUN python -m venv /venv && /venv/bin/pip install --no-cache-dir --no-compile --require-hashes -r rest_api/requirements.lock
COPY rest_api rest_api
COPY bundles bundles
COPY LICENSE LICENSE
COPY NOTICE NOTICE
COPY LICENSES LICENSES
# Starting it once writes the bytecode of what it uses, which a read-only system cannot.
RUN /venv/bin/python -c "from rest_api.app import create_app; create_app()"

FROM python:3.13-slim
COPY --from=build /venv /venv
COPY --from=build /app /app
WORKDIR /app
ENV PORT=5000 PYTHONUNBUFFERED=1
USER 10001:10001
EXPOSE 5000
HEALTHCHECK --interval=10s --timeout=3s --start-period=5s \
    CMD ["/venv/bin/python", "-c", "import os, urllib.request as u; u.build_opener(u.ProxyHandler({})).open(f'http://127.0.0.1:{os.environ[\"PORT\"]}/health/ready', timeout=2)"]
ENTRYPOINT ["/venv/bin/python", "rest_api/app.py", "--host", "0.0.0.0"]
