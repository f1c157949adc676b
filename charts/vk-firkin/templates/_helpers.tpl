{{/* Copyright The vk-firkin Authors */}}
{{/* SPDX-License-Identifier: Apache-2.0 */}}

{{/* Name of what is made once a release. Cluster-wide objects have it too, so that two releases do not fight in silence.
     A release may have dots in its name, which neither a Service nor a group of bootstrap tokens may. */}}
{{- define "vk-firkin.fullname" -}}
{{- $name := .Values.fullnameOverride }}
{{- if not $name }}
{{- $name = contains .Chart.Name .Release.Name | ternary .Release.Name (printf "%s-%s" .Release.Name .Chart.Name) }}
{{- end }}
{{- $name | replace "." "-" | trunc 50 | trimSuffix "-" }}
{{- end }}

{{/* What selects the controller's pods. It never changes: selectors cannot. */}}
{{- define "vk-firkin.selector" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: controller
{{- end }}

{{- define "vk-firkin.labels" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
app.kubernetes.io/part-of: vk-firkin
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- with .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- define "vk-firkin.image" -}}
{{- $i := .Values.controller.image -}}
{{- if $i.registry }}{{ $i.registry }}/{{ end }}{{ $i.repository }}
{{- if $i.digest }}@{{ $i.digest }}{{ else }}:{{ $i.tag | default .Chart.AppVersion }}{{ end }}
{{- end }}

{{/* The group of who joins with the chart's token: nobody else is in it. */}}
{{- define "vk-firkin.bootstrappers" -}}
system:bootstrappers:{{ include "vk-firkin.fullname" . }}
{{- end }}

{{/* The bootstrap token as YAML: id, secret, expiration (RFC 3339). The one that the cluster has stays while it is
     good for another hour, so that an upgrade breaks no join under way. The id is the release's, so that the token is
     found again by its name alone: neither listing Secrets nor a value of its own is needed. It is made once a
     rendering, or NOTES.txt would tell another one than the Secret has. */}}
{{- define "vk-firkin.joinToken" -}}
{{- if not (hasKey .Values.join "made") }}
{{- $id := printf "%s/%s" .Release.Namespace .Release.Name | sha256sum | trunc 6 }}
{{- $secret := randAlphaNum 16 | lower }}
{{- $expires := now | dateModify (printf "+%dh" (int .Values.join.tokenHours)) | date "2006-01-02T15:04:05Z07:00" }}
{{- with .Values.join.token }}
{{- $id = splitList "." . | first }}
{{- $secret = splitList "." . | last }}
{{- end }}
{{- $have := lookup "v1" "Secret" "kube-system" (printf "bootstrap-token-%s" $id) }}
{{- if and $have $have.data (not .Values.join.token) }}
{{- $until := index $have.data "expiration" | default "" | b64dec }}
{{- $soon := now | dateModify "+1h" | unixEpoch | int64 }}
{{- if and $until (gt (toDate "2006-01-02T15:04:05Z07:00" $until | unixEpoch | int64) $soon) }}
{{- $secret = index $have.data "token-secret" | b64dec }}
{{- $expires = $until }}
{{- end }}
{{- end }}
{{- $_ := set .Values.join "made" (dict "id" $id "secret" $secret "expiration" $expires) }}
{{- end }}
{{- toYaml .Values.join.made }}
{{- end }}
