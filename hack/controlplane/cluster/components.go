// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"strconv"
	"strings"
	"time"
)

// The names of the programs inside the binary, which are also the names of their logs.
const (
	Etcd              = "etcd"
	APIServer         = "kube-apiserver"
	ControllerManager = "kube-controller-manager"
	Scheduler         = "kube-scheduler"
	Kubectl           = "kubectl"
	// ControlPlane is our own command.
	ControlPlane = "controlplane"
)

const (
	serviceCIDR         = "10.96.0.0/16"
	kubernetesServiceIP = "10.96.0.1"
	issuer              = "https://kubernetes.default.svc.cluster.local"
)

// component is one process of the control plane.
type component struct {
	name string
	args []string
	// grace is how long the component may take to stop before it is killed. The API server lets the
	// requests in flight finish, the others only close their connections.
	grace time.Duration
}

// etcd listens on unix sockets in the directory only.
func etcd(l Layout) component {
	return component{name: Etcd, grace: 10 * time.Second, args: []string{
		"--name=controlplane",
		"--data-dir=" + l.EtcdData(),
		"--listen-client-urls=unix://" + l.EtcdSocket(),
		// Advertised only because etcd wants a URL with a port: there is no listener, and no second member.
		"--advertise-client-urls=http://127.0.0.1:2379",
		// etcd opens a peer socket relative to its working directory, which is l.
		"--listen-peer-urls=unix://etcd-peer.sock:0",
		// A test cluster need not survive a power cut, and fsync is what costs most of its time.
		"--unsafe-no-fsync",
		"--log-level=warn",
	}}
}

// apiServer serves on loopback with RBAC, the Node authorizer and aggregation.
func apiServer(l Layout, port int) component {
	return component{name: APIServer, grace: 15 * time.Second, args: []string{
		"--etcd-servers=unix://" + l.EtcdSocket(),
		"--bind-address=127.0.0.1",
		"--secure-port=" + strconv.Itoa(port),
		// A loopback address is only accepted as the advertised one when no endpoints are reconciled.
		"--advertise-address=127.0.0.1",
		"--endpoint-reconciler-type=none",
		"--tls-cert-file=" + l.PKI("apiserver.crt"),
		"--tls-private-key-file=" + l.PKI("apiserver.key"),
		"--client-ca-file=" + l.PKI("ca.crt"),
		"--authorization-mode=Node,RBAC",
		"--enable-admission-plugins=NodeRestriction",
		// Off by default, on in every cluster that kubeadm makes: nodes join by a token.
		"--enable-bootstrap-token-auth=true",
		"--allow-privileged=true",
		"--service-account-issuer=" + issuer,
		"--service-account-key-file=" + l.PKI("service-account.pub"),
		"--service-account-signing-key-file=" + l.PKI("service-account.key"),
		"--service-cluster-ip-range=" + serviceCIDR,
		"--kubelet-certificate-authority=" + l.PKI("ca.crt"),
		"--kubelet-client-certificate=" + l.PKI("apiserver-kubelet-client.crt"),
		"--kubelet-client-key=" + l.PKI("apiserver-kubelet-client.key"),
		"--kubelet-preferred-address-types=InternalIP,Hostname",
		"--requestheader-client-ca-file=" + l.PKI("front-proxy-ca.crt"),
		"--requestheader-allowed-names=" + userFrontProxy,
		"--requestheader-username-headers=X-Remote-User",
		"--requestheader-group-headers=X-Remote-Group",
		"--requestheader-extra-headers-prefix=X-Remote-Extra-",
		"--proxy-client-cert-file=" + l.PKI("front-proxy-client.crt"),
		"--proxy-client-key-file=" + l.PKI("front-proxy-client.key"),
		// There is no kube-proxy: aggregated APIs and webhooks are reached by their endpoints.
		"--enable-aggregator-routing=true",
		"--profiling=false",
	}}
}

// controllerManager runs every controller that needs neither a cloud nor a pod network.
func controllerManager(l Layout) component {
	return component{name: ControllerManager, grace: 5 * time.Second, args: []string{
		"--kubeconfig=" + l.ComponentKubeconfig(ControllerManager),
		"--secure-port=0",
		"--leader-elect=false",
		"--use-service-account-credentials",
		"--service-account-private-key-file=" + l.PKI("service-account.key"),
		"--root-ca-file=" + l.PKI("ca.crt"),
		"--cluster-signing-cert-file=" + l.PKI("ca.crt"),
		"--cluster-signing-key-file=" + l.PKI("ca.key"),
		// With the default of 20 a second its start takes twice as long as the rest together.
		"--kube-api-qps=300",
		"--kube-api-burst=600",
		// The first two are off by default: they sign cluster-info for the tokens, and remove tokens that have
		// expired. No cloud and no pod network: each of the others would only log its complaints. Kubernetes 1.37
		// no longer knows the last three, and exits on an unknown name.
		"--controllers=" + strings.Join([]string{
			"*", "bootstrap-signer-controller", "token-cleaner-controller", "-node-ipam-controller", "-node-route-controller", "-service-lb-controller", "-cloud-node-lifecycle-controller",
		}, ","),
		"--profiling=false",
	}}
}

// scheduler is the stock scheduler.
func scheduler(l Layout) component {
	return component{name: Scheduler, grace: 5 * time.Second, args: []string{
		"--kubeconfig=" + l.ComponentKubeconfig(Scheduler),
		"--secure-port=0",
		"--leader-elect=false",
		"--profiling=false",
	}}
}

// environment is what the components inherit: etcd reads every flag from ETCD_ variables too, and a proxy
// or a KUBECONFIG of the caller must not reach any of them.
func environment(lookup func(string) (string, bool)) []string {
	var env []string
	for _, name := range []string{"PATH", "HOME", "TMPDIR", "GODEBUG", "GOMAXPROCS", "GOGC", "GOMEMLIMIT"} {
		if v, ok := lookup(name); ok {
			env = append(env, name+"="+v)
		}
	}
	return env
}
