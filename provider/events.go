// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package provider

import (
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"
	kuberecord "k8s.io/client-go/tools/record"
	"k8s.io/client-go/tools/reference"

	"k8s.io/client-go/kubernetes/scheme"
)

// Reasons of events. Where the kubelet has one for it, it is the kubelet's.
const (
	eventPulling          = "Pulling"
	eventPulled           = "Pulled"
	eventFailed           = "Failed"
	eventBackOff          = "BackOff"
	eventInspectFailed    = "InspectFailed"
	eventNeverPull        = "ErrImageNeverPull"
	eventCreated          = "Created"
	eventStarted          = "Started"
	eventKilling          = "Killing"
	eventFailedPostStart  = "FailedPostStartHook"
	eventFailedPreStop    = "FailedPreStopHook"
	eventFailedSandbox    = "FailedCreatePodSandBox"
	eventSandboxChanged   = "SandboxChanged"
	eventFailedMount      = "FailedMount"
	eventHostPort         = "HostPortConflict"
	eventDNSConfig        = "DNSConfigForming"
	eventMissingDNS       = "MissingClusterDNS"
	eventMachineRestored  = "MachineRestored"
	eventMachineAdopted   = "MachineAdopted"
	eventUnrecorded       = "RecordNotWritten"
	eventMachineSilent    = "MachineNotAnswering"
	eventMachineAnswers   = "MachineAnswersAgain"
	eventPullSecret       = "FailedToRetrieveImagePullSecret"
	eventFailedKillPod    = "FailedKillPod"
	eventUnhealthy        = "Unhealthy"
	eventProbeWarning     = "ProbeWarning"
	eventHTTPFallback     = "LifecycleHTTPFallback"
	maxEventMessage       = 1000 // the API server refuses more than 1024 bytes
	virtualKubeletPrefix  = "Provider"
	virtualKubeletSuccess = "Success"
)

// events tells pods' owners what happens to their pods.
type events struct{ recorder kuberecord.EventRecorder }

func (e events) pod(pod *corev1.Pod, warning bool, reason, message string) {
	e.recorder.Event(pod, eventType(warning), reason, bound(message, maxEventMessage))
}

// container sends an event that is about one container of the pod, as the kubelet does.
func (e events) container(pod *corev1.Pod, name string, warning bool, reason, message string) {
	if name == "" { // an image of a volume
		e.pod(pod, warning, reason, message)
		return
	}
	var obj runtime.Object = pod
	if ref, err := reference.GetPartialReference(scheme.Scheme, pod, listOf(pod, name)+"{"+name+"}"); err == nil {
		obj = ref
	}
	e.recorder.Event(obj, eventType(warning), reason, bound(message, maxEventMessage))
}

// listOf is the list of the pod's specification that has the container.
func listOf(pod *corev1.Pod, name string) string {
	for c := range containersOf(pod) {
		if c.Name == name {
			list, _, _ := strings.Cut(c.field, "[")
			return list
		}
	}
	return "spec.containers"
}

func eventType(warning bool) string {
	if warning {
		return corev1.EventTypeWarning
	}
	return corev1.EventTypeNormal
}

// bound cuts text to at most n bytes of valid UTF-8. What is cut may come from a guest or a registry.
func bound(s string, n int) string {
	s = strings.ToValidUTF8(s, "?")
	if len(s) <= n {
		return s
	}
	const mark = "..."
	return strings.ToValidUTF8(s[:n-len(mark)], "") + mark
}

// quietRecorder drops the events by which virtual-kubelet says that its calls into
// the provider succeeded: they say nothing to a pod's owner.
type quietRecorder struct{ kuberecord.EventRecorder }

func (q quietRecorder) Event(obj runtime.Object, kind, reason, message string) {
	if strings.HasPrefix(reason, virtualKubeletPrefix) && strings.HasSuffix(reason, virtualKubeletSuccess) {
		return
	}
	q.EventRecorder.Event(obj, kind, reason, message)
}
