# Phalanx on a CPU: `docker build -t phalanx . && docker run --rm phalanx` runs the demo.
# Keep what it writes: docker run --rm -v "$PWD/runs:/phalanx/runs" phalanx demo --out runs/demo
FROM python:3.11-slim AS build
WORKDIR /source
COPY pyproject.toml README.md LICENSE constraints.txt ./
COPY src ./src
RUN python -m venv /opt/phalanx \
    && /opt/phalanx/bin/pip install --no-cache-dir --extra-index-url https://download.pytorch.org/whl/cpu \
        "$(sed -n 's/^\(torch==[0-9.]*\).*/\1+cpu/p' constraints.txt)" \
    && /opt/phalanx/bin/pip install --no-cache-dir --constraint constraints.txt .

FROM python:3.11-slim
COPY --from=build /opt/phalanx /opt/phalanx
ENV PATH=/opt/phalanx/bin:$PATH MPLCONFIGDIR=/tmp/matplotlib
RUN useradd --create-home phalanx && install --directory --owner phalanx /phalanx
USER phalanx
WORKDIR /phalanx
ENTRYPOINT ["phalanx"]
CMD ["demo"]
