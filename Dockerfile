# dehvf-kit on a CPU or on CUDA, without root. See docs/environment.md.
#   docker build -t dehvf-kit .                                       # torch's usual wheels, which have CUDA
#   docker build -t dehvf-kit:cpu --build-arg TORCH_INDEX=ADDRESS .   # smaller: the index of CPU wheels on torch's installation page
# CUDA's libraries come with torch's wheel: the host brings the driver and the NVIDIA container toolkit (docker run --gpus all).
ARG PYTHON=3.11.14

FROM python:${PYTHON}-slim-bookworm AS build
ARG TORCH_INDEX=
ARG EXTRAS=train,data
ARG PLUGINS="dehvf-kit-streams dehvf-kit-benchmarks dehvf-kit-scaffold dehvf-kit-doctor dehvf-kit-report dehvf-kit-serve"
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python -m venv /opt/dehvf-kit
ENV PATH=/opt/dehvf-kit/bin:$PATH
WORKDIR /source
COPY constraints.txt ./
RUN pip install ${TORCH_INDEX:+--index-url "${TORCH_INDEX}"} "$(grep '^torch==' constraints.txt)"
COPY . .
RUN pip install -c constraints.txt ".[${EXTRAS}]" \
    && for plugin in ${PLUGINS}; do pip install -c constraints.txt "./plugins/${plugin}" || exit 1; done

FROM python:${PYTHON}-slim-bookworm
COPY --from=build /opt/dehvf-kit /opt/dehvf-kit
RUN useradd --create-home --uid 1000 kit && install -d -o kit -g kit -m 1777 /home/kit/cache /home/kit/work
USER kit
WORKDIR /home/kit/work
ENV PATH=/opt/dehvf-kit/bin:$PATH HF_HOME=/home/kit/cache/huggingface DEHVF_KIT_CACHE=/home/kit/cache/dehvf-kit
ENTRYPOINT ["dehvf-kit"]
CMD ["--help"]
