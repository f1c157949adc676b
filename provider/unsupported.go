// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package provider

import (
	"fmt"
	"reflect"
	"strings"

	corev1 "k8s.io/api/core/v1"

	"github.com/vk-firkin/vk-firkin/crds/v1alpha1"
)

// ReasonUnsupportedField is the reason of a pod's Failed status, and of its event,
// when the pod asks for what the node cannot give.
const ReasonUnsupportedField = "UnsupportedField"

// rule says what may stand in a field. A field that is not zero and has no rule is
// refused: what a newer API adds is refused by name until somebody thought of it.
type rule struct {
	// into: the field itself is fine, each field below needs its own rule.
	into bool
	// only, when set, are the values that may stand there.
	only []string
	// hint is added to the refusal.
	hint string
}

var anything = rule{}

func into() rule                 { return rule{into: true} }
func only(values ...string) rule { return rule{only: values} }
func refuse(hint string) rule    { return rule{only: []string{}, hint: hint} }
func (r rule) admits(v any) bool {
	if r.only == nil {
		return true
	}
	got := fmt.Sprint(v)
	for _, want := range r.only {
		if got == want {
			return true
		}
	}
	return false
}

// Why some of a securityContext is refused.
const (
	noAppArmor = "the machine's kernel has no AppArmor profiles; use a seccompProfile"
	noSELinux  = "the machine's kernel has no SELinux policy"
)

// rules returns what a pod may have, by JSON path below the spec; "[]" stands for each
// element. What is accepted here is either enforced, or says something only to
// others (the scheduler), or is a value that means "as it is anyway".
func rules() map[string]rule {
	r := map[string]rule{
		// For the scheduler and the API server only.
		"nodeName": anything, "nodeSelector": anything, "affinity": anything, "tolerations": anything,
		"schedulerName": anything, "priorityClassName": anything, "priority": anything, "preemptionPolicy": anything,
		"topologySpreadConstraints": anything, "serviceAccount": anything, "automountServiceAccountToken": anything,

		"restartPolicy": anything, "terminationGracePeriodSeconds": anything, "dnsPolicy": anything, "dnsConfig": anything,
		"serviceAccountName": anything, "imagePullSecrets": anything, "hostname": anything, "subdomain": anything,
		"setHostnameAsFQDN": anything, "hostnameOverride": anything,
		"resources": into(), "resources.requests": into(), "resources.requests.cpu": anything, "resources.requests.memory": anything,
		"resources.limits": into(), "resources.limits.cpu": anything, "resources.limits.memory": anything,
		"hostAliases": anything, "readinessGates": anything, "enableServiceLinks": anything,
		"shareProcessNamespace": anything,
		"os":                    into(), "os.name": only("linux"),
		"hostNetwork": refuse("a pod has the network of its own machine"),
		"hostPID":     refuse("a pod has its own machine"),
		"hostIPC":     refuse("a pod has its own machine"),
		// A machine's users are never the host's, which is what false asks for.
		"hostUsers":             anything,
		"initContainers":        into(),
		"activeDeadlineSeconds": anything,
		"ephemeralContainers":   anything, // see unsupportedEphemeral
		"runtimeClassName":      anything, // names a SnapshotTemplate: see template.go
		"overhead":              anything, // the machine's own part, for the scheduler

		"securityContext":                                  into(),
		"securityContext.runAsUser":                        anything,
		"securityContext.runAsGroup":                       anything,
		"securityContext.runAsNonRoot":                     anything,
		"securityContext.supplementalGroups":               anything,
		"securityContext.supplementalGroupsPolicy":         only("Merge", "Strict"),
		"securityContext.fsGroup":                          anything,
		"securityContext.fsGroupChangePolicy":              anything, // a volume is always new: both policies do the same
		"securityContext.seccompProfile":                   anything,
		"securityContext.sysctls":                          anything, // whether the kernel has them is for the machine to say
		"securityContext.appArmorProfile":                  into(),
		"securityContext.appArmorProfile.type":             {only: []string{"Unconfined"}, hint: noAppArmor},
		"securityContext.appArmorProfile.localhostProfile": anything, // its type is refused
		"securityContext.seLinuxOptions":                   refuse(noSELinux),
		"securityContext.seLinuxChangePolicy":              refuse(noSELinux),
		"securityContext.windowsOptions":                   anything, // of no meaning on Linux, where a kubelet passes over it

		"containers": into(),
		"volumes":    into(),
	}
	for path, rule := range map[string]rule{
		"name": anything, "image": anything, "command": anything, "args": anything, "workingDir": anything,
		"imagePullPolicy": anything, "stdin": anything, "stdinOnce": anything, "tty": anything,
		"ports": into(), "ports[].name": anything, "ports[].containerPort": anything, "ports[].protocol": anything,
		"ports[].hostPort": anything, "ports[].hostIP": anything, // see hostports.go
		"envFrom": anything, "env": into(), "env[].name": anything, "env[].value": anything, "env[].valueFrom": into(),
		"env[].valueFrom.fieldRef": anything, "env[].valueFrom.resourceFieldRef": anything,
		"env[].valueFrom.configMapKeyRef": anything, "env[].valueFrom.secretKeyRef": anything,
		"resources": into(), "resources.limits": into(), "resources.requests": into(), "resizePolicy": anything,
		"resources.limits.cpu": anything, "resources.limits.memory": anything, "resources.limits.ephemeral-storage": anything,
		"resources.requests.cpu": anything, "resources.requests.memory": anything, "resources.requests.ephemeral-storage": anything,
		"volumeMounts": into(), "volumeMounts[].name": anything, "volumeMounts[].readOnly": anything,
		"volumeMounts[].recursiveReadOnly": anything, "volumeMounts[].mountPath": anything,
		"volumeMounts[].subPath": anything, "volumeMounts[].subPathExpr": anything,
		// There are no mounts of a host that could come later: HostToContainer is None.
		"volumeMounts[].mountPropagation": {only: []string{"None", "HostToContainer"}, hint: "what a container mounts stays in it"},
		"terminationMessagePath":          anything, "terminationMessagePolicy": anything,
		"lifecycle": anything, "livenessProbe": anything, "readinessProbe": anything, "startupProbe": anything,
		"restartPolicy": anything, "restartPolicyRules": into(), "restartPolicyRules[].exitCodes": anything,
		"restartPolicyRules[].action":                      only(string(corev1.ContainerRestartRuleActionRestart)),
		"securityContext":                                  into(),
		"securityContext.privileged":                       anything,
		"securityContext.runAsUser":                        anything,
		"securityContext.runAsGroup":                       anything,
		"securityContext.runAsNonRoot":                     anything,
		"securityContext.readOnlyRootFilesystem":           anything,
		"securityContext.allowPrivilegeEscalation":         anything,
		"securityContext.procMount":                        only("Default", "Unmasked"),
		"securityContext.seccompProfile":                   anything,
		"securityContext.appArmorProfile":                  into(),
		"securityContext.appArmorProfile.type":             {only: []string{"Unconfined"}, hint: noAppArmor},
		"securityContext.appArmorProfile.localhostProfile": anything, // its type is refused
		"securityContext.capabilities":                     into(),
		"securityContext.capabilities.add":                 anything,
		"securityContext.capabilities.drop":                anything,
		"securityContext.seLinuxOptions":                   refuse(noSELinux),
		"securityContext.windowsOptions":                   anything, // of no meaning on Linux, where a kubelet passes over it
	} {
		for _, kind := range []string{"containers[].", "initContainers[].", "ephemeralContainers[]."} {
			r[kind+path] = rule
		}
	}
	r["ephemeralContainers[].targetContainerName"] = anything
	for path, rule := range map[string]rule{
		"name": anything, "emptyDir": into(), "emptyDir.medium": {only: []string{"Memory"}, hint: "machines have no huge pages"}, "emptyDir.sizeLimit": anything,
		"configMap": into(), "secret": into(), "downwardAPI": into(), "projected": into(),
		"projected.defaultMode": anything, "projected.sources": into(),
		"projected.sources[].serviceAccountToken": into(), "projected.sources[].serviceAccountToken.audience": anything,
		"projected.sources[].serviceAccountToken.expirationSeconds": anything, "projected.sources[].serviceAccountToken.path": anything,
		"projected.sources[].clusterTrustBundle": into(),
		"projected.sources[].podCertificate":     refuse("the node requests no certificates for pods; put one into a Secret and project that"),
		"image":                                  into(), "image.reference": anything, "image.pullPolicy": anything,
		"hostPath":              anything, // see hostPaths
		"persistentVolumeClaim": refuse(noVolumePlugins), "ephemeral": refuse(noVolumePlugins), "csi": refuse(noVolumePlugins),
		"gitRepo": refuse("clone into an emptyDir, by a command of the pod"),
	} {
		r["volumes[]."+path] = rule
	}
	for _, kind := range []string{"gcePersistentDisk", "awsElasticBlockStore", "nfs", "iscsi", "glusterfs", "rbd", "flexVolume", "cinder", "cephfs", "flocker",
		"fc", "azureFile", "azureDisk", "vsphereVolume", "quobyte", "photonPersistentDisk", "portworxVolume", "scaleIO", "storageos"} {
		r["volumes[]."+kind] = refuse(noVolumePlugins)
	}
	for _, field := range []string{"name", "signerName", "labelSelector", "optional", "path"} {
		r["volumes[].projected.sources[].clusterTrustBundle."+field] = anything
	}
	for _, source := range []string{"", "projected.sources[]."} {
		for _, kind := range []string{"configMap", "secret", "downwardAPI"} {
			p := "volumes[]." + source + kind
			r[p] = into()
			for _, f := range []string{"name", "secretName", "optional", "defaultMode", "items", "items[].key", "items[].path", "items[].mode", "items[].fieldRef", "items[].resourceFieldRef"} {
				if f == "items" {
					r[p+"."+f] = into()
				} else {
					r[p+"."+f] = anything
				}
			}
		}
	}
	return r
}

// unsupported returns one sentence for each field of the pod that asks for what the
// node cannot give, in the order of the specification. It is pure.
func unsupported(pod *corev1.Pod) []string {
	w := walker{rules: rules()}
	w.fields(reflect.ValueOf(pod.Spec), "", "spec")
	switch path := pod.Annotations[AnnotationPath]; path {
	case "", PathRestore, PathCold:
	default:
		w.faults = append(w.faults, fmt.Sprintf("metadata.annotations[%s]: %.64q is no way to a machine, only %s and %s may be asked for", AnnotationPath, path, PathRestore, PathCold))
	}
	return append(w.faults, unsupportedPorts(pod)...)
}

// noVolumePlugins is why a volume that outlives its pod is refused, and what to do.
const noVolumePlugins = "a machine's disks are made and deleted with it, and the node has no volume plugins; use an emptyDir, and keep what must last in a service that the pod reaches over the network"

// unsupportedEphemeral returns one sentence for each field of an ephemeral container that
// asks for what the node cannot give. Such a container is not started; its pod goes on. It is pure.
func unsupportedEphemeral(pod *corev1.Pod, name string) []string {
	w := walker{rules: rules()}
	for i := range pod.Spec.EphemeralContainers {
		if e := &pod.Spec.EphemeralContainers[i]; e.Name == name {
			w.fields(reflect.ValueOf(*e), "ephemeralContainers[]", fmt.Sprintf("spec.ephemeralContainers[%d]", i))
		}
	}
	return w.faults
}

// unsupportedMacOS returns one sentence for each field that a macOS guest cannot give: its
// containers are processes of one system, which has neither namespaces nor cgroups. It is
// pure.
func unsupportedMacOS(pod *corev1.Pod) []string {
	const plain = "containers are plain processes of the system"
	var faults []string
	refuse := func(asked bool, field, hint string, args ...any) {
		if asked {
			faults = append(faults, fmt.Sprintf(field, args...)+": not supported in a macOS guest ("+hint+")")
		}
	}
	if r := pod.Spec.Resources; r != nil {
		refuse(len(r.Limits) > 0, "spec.resources.limits", "nothing below the machine's shape is enforced; leave the limit out")
	}
	for c := range containersOf(pod) {
		for _, name := range []corev1.ResourceName{corev1.ResourceCPU, corev1.ResourceMemory} {
			_, limited := c.Resources.Limits[name]
			refuse(limited, "%s.resources.limits.%s", "nothing below the machine's shape is enforced; leave the limit out", c.field, name)
		}
		for j := range c.VolumeMounts {
			mode := c.VolumeMounts[j].RecursiveReadOnly
			refuse(mode != nil && *mode == corev1.RecursiveReadOnlyEnabled, "%s.volumeMounts[%d].recursiveReadOnly", "volumes are linked, not mounted", c.field, j)
		}
		if s := c.SecurityContext; s != nil {
			refuse(s.ReadOnlyRootFilesystem != nil && *s.ReadOnlyRootFilesystem, "%s.securityContext.readOnlyRootFilesystem", "containers share the system's disk", c.field)
			refuse(s.Privileged != nil && *s.Privileged, "%s.securityContext.privileged", plain, c.field)
			refuse(s.AllowPrivilegeEscalation != nil && !*s.AllowPrivilegeEscalation, "%s.securityContext.allowPrivilegeEscalation", plain, c.field)
			refuse(s.ProcMount != nil && *s.ProcMount != corev1.DefaultProcMount, "%s.securityContext.procMount", "it has no /proc", c.field)
			refuse(s.Capabilities != nil && len(s.Capabilities.Add)+len(s.Capabilities.Drop) > 0, "%s.securityContext.capabilities", plain, c.field)
			refuse(confines(s.SeccompProfile), "%s.securityContext.seccompProfile", plain, c.field)
		}
		refuse(c.target != "", "%s.targetContainerName", "containers see each other's processes anyway; leave it out", c.field)
		refuse(c.TerminationMessagePath != "" && c.TerminationMessagePath != corev1.TerminationMessagePathDefault, "%s.terminationMessagePath",
			"containers share the system's disk; use terminationMessagePolicy: FallbackToLogsOnError", c.field)
	}
	if s := pod.Spec.SecurityContext; s != nil {
		refuse(confines(s.SeccompProfile), "spec.securityContext.seccompProfile", plain)
		refuse(len(s.Sysctls) > 0, "spec.securityContext.sysctls", "its kernel has none of Linux's parameters")
	}
	for i := range pod.Spec.Volumes {
		e := pod.Spec.Volumes[i].EmptyDir
		refuse(pod.Spec.Volumes[i].Image != nil, "spec.volumes[%d].image", "it has no image slots; copy the files into the template", i)
		refuse(e != nil && e.Medium == corev1.StorageMediumMemory, "spec.volumes[%d].emptyDir.medium", "there is no file system in memory; leave the medium out", i)
	}
	return faults
}

// confines: the profile is more than the wish to have none.
func confines(p *corev1.SeccompProfile) bool {
	return p != nil && p.Type != corev1.SeccompProfileTypeUnconfined
}

type walker struct {
	rules  map[string]rule
	faults []string
}

// fields checks each field of a struct or each entry of a map.
func (w *walker) fields(v reflect.Value, path, shown string) {
	if v.Kind() == reflect.Map {
		for _, k := range v.MapKeys() {
			if strings.HasPrefix(k.String(), v1alpha1.ResourceWarmPrefix) || k.String() == v1alpha1.ResourceMacOSVM {
				continue // a pool's extended resource: whoever gets one has a machine of it; a slot is for the scheduler
			}
			w.value(v.MapIndex(k), join(path, k.String()), shown+"."+k.String())
		}
		return
	}
	t := v.Type()
	for i := range t.NumField() {
		name, _, _ := strings.Cut(t.Field(i).Tag.Get("json"), ",")
		if name == "" { // embedded: its fields appear as the struct's own
			if t.Field(i).Anonymous {
				w.fields(v.Field(i), path, shown)
			}
			continue
		}
		w.value(v.Field(i), join(path, name), shown+"."+name)
	}
}

func join(path, name string) string {
	if path == "" {
		return name
	}
	return path + "." + name
}

// value checks one field.
func (w *walker) value(v reflect.Value, path, shown string) {
	if v.IsZero() || (v.Kind() == reflect.Slice || v.Kind() == reflect.Map) && v.Len() == 0 {
		return
	}
	r, known := w.rules[path]
	plain := v
	for plain.Kind() == reflect.Pointer {
		plain = plain.Elem()
	}
	switch {
	case known && r.into:
		w.descend(plain, path, shown)
	case !known:
		w.faults = append(w.faults, shown+": not supported yet")
	case !r.admits(plain.Interface()):
		w.refuse(plain, r, shown)
	}
}

func (w *walker) refuse(v reflect.Value, r rule, shown string) {
	msg := shown + ": not supported yet"
	switch v.Kind() {
	case reflect.Struct, reflect.Slice, reflect.Map:
	default:
		if len(r.only) > 0 {
			msg = fmt.Sprintf("%s: %v is not supported yet, only %s", shown, v.Interface(), strings.Join(r.only, ", "))
		}
	}
	if r.hint != "" {
		msg += " (" + r.hint + ")"
	}
	w.faults = append(w.faults, msg)
}

func (w *walker) descend(v reflect.Value, path, shown string) {
	switch v.Kind() {
	case reflect.Slice:
		for i := range v.Len() {
			w.fields(v.Index(i), path+"[]", fmt.Sprintf("%s[%d]", shown, i))
		}
	case reflect.Struct, reflect.Map:
		w.fields(v, path, shown)
	default:
		w.faults = append(w.faults, shown+": not supported yet")
	}
}
