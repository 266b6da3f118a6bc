{{- define "podwire.image" -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end }}

{{- define "podwire.labels" -}}
app.kubernetes.io/name: podwire
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
{{- end }}

{{- define "podwire.config" -}}
{{ .Files.Get "config.yaml" }}
{{- with .Values.config }}
{{ toYaml . }}
{{- end }}
{{- end }}
