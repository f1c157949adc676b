// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package approver

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	certificatesv1 "k8s.io/api/certificates/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/util/cert"

	"github.com/vk-firkin/vk-firkin/crds/v1alpha1"
)

var now = time.Date(2026, 11, 26, 10, 0, 0, 0, time.UTC)

func key(t *testing.T) crypto.Signer {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// node is one of ours unless runtime says otherwise.
func node(name, runtime string, ips ...string) corev1.Node {
	n := corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}}
	n.Status.NodeInfo.ContainerRuntimeVersion = runtime
	for _, ip := range ips {
		n.Status.Addresses = append(n.Status.Addresses, corev1.NodeAddress{Type: corev1.NodeInternalIP, Address: ip})
	}
	n.Status.Addresses = append(n.Status.Addresses, corev1.NodeAddress{Type: corev1.NodeHostName, Address: "kubernetes.default.svc"})
	return n
}

func service(name string, ips ...string) corev1.Service {
	return corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name}, Spec: corev1.ServiceSpec{ClusterIP: ips[0], ClusterIPs: ips}}
}

func many() map[string]Joined {
	all := map[string]Joined{}
	for i := range maxJoined {
		all[fmt.Sprint("node-", i)] = Joined{Key: "x"}
	}
	return all
}

// request is one that is approved, before a case changes it.
type request struct {
	signer   string
	user     string
	groups   []string
	subject  pkix.Name
	dns      []string
	ips      []string
	mails    []string
	uris     []*url.URL
	usages   []certificatesv1.KeyUsage
	age      time.Duration
	raw      []byte
	key      crypto.Signer // nil: a new one
	forge    bool
	decided  bool
	policy   Policy
	networks []string
}

func serving() request {
	return request{
		signer: certificatesv1.KubeletServingSignerName, user: "system:node:mac-1", groups: []string{"system:nodes", "system:authenticated"},
		subject: pkix.Name{CommonName: "system:node:mac-1", Organization: []string{"system:nodes"}},
		dns:     []string{"mac-1"}, ips: []string{"192.0.2.10"},
		usages: []certificatesv1.KeyUsage{certificatesv1.UsageDigitalSignature, certificatesv1.UsageServerAuth},
	}
}

func joining() request {
	return request{
		signer: certificatesv1.KubeAPIServerClientKubeletSignerName, user: "system:bootstrap:abcdef", groups: []string{"system:bootstrappers", DefaultJoinGroup},
		subject: pkix.Name{CommonName: "system:node:mac-9", Organization: []string{"system:nodes"}},
		usages:  []certificatesv1.KeyUsage{certificatesv1.UsageClientAuth, certificatesv1.UsageDigitalSignature},
	}
}

func (r request) object(t *testing.T) *certificatesv1.CertificateSigningRequest {
	t.Helper()
	template := &x509.CertificateRequest{Subject: r.subject, DNSNames: r.dns, EmailAddresses: r.mails, URIs: r.uris}
	for _, ip := range r.ips {
		template.IPAddresses = append(template.IPAddresses, net.ParseIP(ip))
	}
	raw := r.raw
	if raw == nil {
		signer := r.key
		if signer == nil {
			signer = key(t)
		}
		var err error
		if raw, err = cert.MakeCSRFromTemplate(signer, template); err != nil {
			t.Fatal(err)
		}
	}
	if r.forge { // a request that somebody else has signed
		block, _ := pem.Decode(raw)
		block.Bytes[len(block.Bytes)-1] ^= 1
		raw = pem.EncodeToMemory(block)
	}
	csr := &certificatesv1.CertificateSigningRequest{
		ObjectMeta: metav1.ObjectMeta{Name: "csr-1", CreationTimestamp: metav1.NewTime(now.Add(-r.age))},
		Spec:       certificatesv1.CertificateSigningRequestSpec{SignerName: r.signer, Username: r.user, Groups: r.groups, Usages: r.usages, Request: raw},
	}
	if r.decided {
		csr.Status.Conditions = []certificatesv1.CertificateSigningRequestCondition{{Type: certificatesv1.CertificateDenied}}
	}
	return csr
}

func TestDecide(t *testing.T) {
	const ours = "firkin://v1"
	fleet := []corev1.Node{
		node("mac-1", ours, "192.0.2.10", "2001:db8::10"), node("mac-2", ours, "192.0.2.20"), node("shared", ours, "192.0.2.10", "127.0.0.1"),
		node("kubelet", "containerd://2.1", "192.0.2.30"), node("fresh", ""), node("kubernetes.default.svc", ours, "192.0.2.40"),
	}
	alone := slices.Concat(fleet[:2], fleet[3:]) // without the one that has mac-1's address
	ledgers := []v1alpha1.NodeLedger{{ObjectMeta: metav1.ObjectMeta{Name: "mac-7"}}}
	services := []corev1.Service{service("dns", "10.96.0.10", "2001:db8:ffff::10"), service("web", "10.96.0.11")}
	services[1].Status.LoadBalancer.Ingress = []corev1.LoadBalancerIngress{{IP: "192.0.2.80"}}
	services[1].Spec.ExternalIPs = []string{"192.0.2.81"}
	claims := func(addresses ...string) []corev1.Node { return []corev1.Node{node("mac-1", ours, addresses...)} }
	had := func(name string) map[string]Joined {
		return map[string]Joined{name: {Key: "sha256:x", Addresses: []netip.Addr{netip.MustParseAddr("192.0.2.10")}}}
	}
	for name, tt := range map[string]struct {
		request func(*request)
		join    bool
		nodes   []corev1.Node
		joined  map[string]Joined
		want    Verdict
		person  bool
		why     string
	}{
		"its own name and address":     {want: Approve},
		"both families":                {request: func(r *request) { r.ips = []string{"192.0.2.10", "2001:db8::10"} }, want: Approve},
		"an address in another form":   {request: func(r *request) { r.ips = []string{"::ffff:192.0.2.10"} }, want: Approve},
		"an address alone":             {request: func(r *request) { r.dns = nil }, want: Approve},
		"with an RSA key's usage":      {request: func(r *request) { r.usages = append(r.usages, certificatesv1.UsageKeyEncipherment) }, want: Approve},
		"within the networks":          {request: func(r *request) { r.networks = []string{"192.0.2.0/24"} }, want: Approve},
		"decided already":              {request: func(r *request) { r.decided = true }, want: Ignore},
		"another signer":               {request: func(r *request) { r.signer = "example.test/signer" }, want: Ignore},
		"a person asks":                {request: func(r *request) { r.user = "alice" }, want: Ignore},
		"a node's name without group":  {request: func(r *request) { r.groups = []string{"system:authenticated"} }, want: Ignore},
		"another kubelet's":            {request: func(r *request) { r.user = "system:node:kubelet" }, want: Ignore},
		"a node that is not there yet": {request: func(r *request) { r.user = "system:node:mac-3" }, want: Wait, why: "there is no Node mac-3"},
		"a node without a status":      {request: func(r *request) { r.user = "system:node:fresh" }, want: Wait, why: "no status"},
		"without a status for long":    {request: func(r *request) { r.user, r.age = "system:node:fresh", time.Hour }, want: Ignore},
		"for another node":             {request: func(r *request) { r.subject.CommonName = "system:node:mac-2" }, want: Deny, why: "want the name system:node:mac-1"},
		"for no node":                  {request: func(r *request) { r.subject.CommonName = "mac-1" }, want: Deny, why: "want the name"},
		"for masters":                  {request: func(r *request) { r.subject.Organization = []string{"system:masters"} }, want: Deny, why: "organization"},
		"for masters as well": {request: func(r *request) { r.subject.Organization = append(r.subject.Organization, "system:masters") },
			want: Deny, why: "organization"},
		"with a further name":           {request: func(r *request) { r.subject.OrganizationalUnit = []string{"x"} }, want: Deny, why: "no more than"},
		"for another node's name":       {request: func(r *request) { r.dns = append(r.dns, "mac-2") }, want: Deny, why: `not for "mac-2"`},
		"for a service it claims to be": {request: func(r *request) { r.dns = []string{"kubernetes.default.svc"} }, want: Deny, why: `not for "kubernetes.default.svc"`},
		"a node called as a service": {request: func(r *request) {
			r.user, r.subject.CommonName, r.dns, r.ips = "system:node:kubernetes.default.svc", "system:node:kubernetes.default.svc", []string{"kubernetes.default.svc"}, nil
		}, want: Deny, why: "cluster's own"},
		"for a wildcard":                     {request: func(r *request) { r.dns = []string{"*"} }, want: Deny, why: "its own name"},
		"for nothing":                        {request: func(r *request) { r.dns, r.ips = nil, nil }, want: Deny, why: "for none"},
		"with a mail address":                {request: func(r *request) { r.mails = []string{"a@example.test"} }, want: Deny, why: "mail"},
		"with a URI":                         {request: func(r *request) { r.uris = []*url.URL{{Scheme: "spiffe", Host: "x"}} }, want: Deny, why: "URI"},
		"an address it does not have yet":    {request: func(r *request) { r.ips = []string{"192.0.2.99"} }, want: Wait, why: "192.0.2.99"},
		"an address it does not have at all": {request: func(r *request) { r.ips, r.age = []string{"192.0.2.99"}, 2*time.Minute }, want: Deny, why: "192.0.2.99"},
		"another node's address":             {request: func(r *request) { r.ips, r.age = []string{"192.0.2.20"}, 2*time.Minute }, want: Deny, why: "does not have"},
		"an address that two have":           {nodes: fleet, want: Wait, person: true, why: "kubectl certificate approve csr-1"},
		"that it had before the other":       {nodes: fleet, joined: had("mac-1"), want: Approve},
		"that the other had before":          {nodes: fleet, joined: had("shared"), want: Wait, person: true, why: "also an address of Node shared"},
		"that a Node had which is gone":      {joined: had("mac-5"), want: Wait, person: true, why: "node mac-5 had a certificate for it"},
		"that a Node had which is new again": {nodes: append(claims("192.0.2.10"), corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "mac-5"}}), joined: had("mac-5"),
			want: Wait, person: true, why: "node mac-5 had a certificate for it"},
		"that a Node had which has another": {joined: had("mac-2"), want: Approve},
		"that it had, as one which is gone": {joined: map[string]Joined{"mac-1": had("")[""], "mac-5": had("")[""]}, want: Approve},
		"the address of a service":          {nodes: claims("10.96.0.10"), request: func(r *request) { r.ips = []string{"10.96.0.10"} }, want: Deny, why: "Service default/dns"},
		"its second address": {nodes: claims("2001:db8:ffff::10"), request: func(r *request) { r.ips = []string{"2001:db8:ffff::10"} },
			want: Deny, why: "Service default/dns"},
		"a load balancer's": {nodes: claims("192.0.2.80"), request: func(r *request) { r.ips = []string{"192.0.2.80"} }, want: Wait, person: true, why: "Service default/web"},
		"one that is disputed and one that is denied": {nodes: claims("192.0.2.80", "10.96.0.10"), request: func(r *request) { r.ips = []string{"192.0.2.80", "10.96.0.10"} },
			want: Deny, why: "Service default/dns"},
		"an external one": {nodes: claims("192.0.2.81"), request: func(r *request) { r.ips = []string{"192.0.2.81"} }, want: Wait, person: true, why: "Service default/web"},
		"too many addresses": {nodes: claims("192.0.2.10"), request: func(r *request) { r.ips = slices.Repeat([]string{"192.0.2.10"}, 9) },
			want: Deny, why: "8 addresses at most"},
		"loopback, which all have": {nodes: fleet, request: func(r *request) {
			r.user, r.subject.CommonName, r.dns, r.ips = "system:node:shared", "system:node:shared", []string{"shared"}, []string{"127.0.0.1"}
		}, want: Approve},
		"the unspecified address":          {request: func(r *request) { r.ips = []string{"0.0.0.0"} }, want: Deny, why: "not an address of a host"},
		"outside the networks":             {request: func(r *request) { r.networks = []string{"198.51.100.0/24"} }, want: Deny, why: "--node-networks"},
		"the API server's address":         {request: func(r *request) { r.policy.Reserved = []netip.Addr{netip.MustParseAddr("192.0.2.10")} }, want: Deny, why: "API server's own"},
		"to be a client":                   {request: func(r *request) { r.usages = append(r.usages, certificatesv1.UsageClientAuth) }, want: Deny, why: "usages"},
		"to be a client only":              {request: func(r *request) { r.usages[1] = certificatesv1.UsageClientAuth }, want: Deny, why: "usages"},
		"to sign certificates":             {request: func(r *request) { r.usages = append(r.usages, certificatesv1.UsageCertSign) }, want: Deny, why: "usages"},
		"without a usage":                  {request: func(r *request) { r.usages = r.usages[:1] }, want: Deny, why: "usages"},
		"not a request":                    {request: func(r *request) { r.raw = []byte("hello") }, want: Deny, why: "PEM"},
		"an empty request":                 {request: func(r *request) { r.raw = []byte{} }, want: Deny, why: "PEM"},
		"not signed with its key":          {request: func(r *request) { r.forge = true }, want: Deny, why: "own key"},
		"a token joins":                    {join: true, want: Approve, why: "mac-9"},
		"a token of others":                {join: true, request: func(r *request) { r.groups = []string{"system:bootstrappers:kubeadm:default-node-token"} }, want: Ignore},
		"another group is ours":            {join: true, request: func(r *request) { r.policy.JoinGroup = "system:bootstrappers:x" }, want: Ignore},
		"the group without a token":        {join: true, request: func(r *request) { r.user = "alice" }, want: Ignore},
		"a renewal":                        {join: true, request: func(r *request) { r.user, r.groups = "system:node:mac-9", []string{"system:nodes"} }, want: Ignore},
		"a token takes over a node":        {join: true, request: func(r *request) { r.subject.CommonName = "system:node:mac-1" }, want: Wait, person: true, why: "exists already"},
		"even one that is not ours":        {join: true, request: func(r *request) { r.subject.CommonName = "system:node:kubelet" }, want: Wait, person: true, why: "exists already"},
		"one of which a ledger is left":    {join: true, request: func(r *request) { r.subject.CommonName = "system:node:mac-7" }, want: Wait, person: true, why: "NodeLedger"},
		"a name that another key has":      {join: true, joined: had("mac-9"), want: Wait, person: true, why: "another key"},
		"a name that was a node's":         {join: true, joined: map[string]Joined{"mac-9": {}}, want: Wait, person: true, why: "kubectl certificate approve csr-1"},
		"no more names":                    {join: true, joined: many(), want: Wait, person: true, why: JoinedName},
		"a token wants to be admin":        {join: true, request: func(r *request) { r.subject.CommonName = "kubernetes-admin" }, want: Deny, why: "of nodes"},
		"a token wants masters":            {join: true, request: func(r *request) { r.subject.Organization = []string{"system:nodes", "system:masters"} }, want: Deny, why: "organization"},
		"a token wants a server":           {join: true, request: func(r *request) { r.usages = append(r.usages, certificatesv1.UsageServerAuth) }, want: Deny, why: "usages"},
		"a token wants an address":         {join: true, request: func(r *request) { r.ips = []string{"192.0.2.1"} }, want: Deny, why: "no further names"},
		"a token wants no name":            {join: true, request: func(r *request) { r.subject.CommonName = "system:node:" }, want: Deny, why: "cannot be a node's name"},
		"a token wants a service":          {join: true, request: func(r *request) { r.subject.CommonName = "system:node:kubernetes.default.svc" }, want: Deny, why: "cannot be a node's name"},
		"a token wants an address as name": {join: true, request: func(r *request) { r.subject.CommonName = "system:node:192.0.2.99" }, want: Deny, why: "cannot be a node's name"},
		"a token wants a path":             {join: true, request: func(r *request) { r.subject.CommonName = "system:node:../x" }, want: Deny, why: "cannot be a node's name"},
		"a token sends no request": {join: true, request: func(r *request) {
			r.raw = []byte("-----BEGIN CERTIFICATE REQUEST-----\n-----END CERTIFICATE REQUEST-----\n")
		}, want: Deny, why: "request"},
		"the same, decided":          {join: true, request: func(r *request) { r.decided = true }, want: Ignore},
		"a token for the serving":    {join: true, request: func(r *request) { r.signer = certificatesv1.KubeletServingSignerName }, want: Ignore},
		"nobody knows an API client": {join: true, request: func(r *request) { r.signer = certificatesv1.KubeAPIServerClientSignerName }, want: Ignore},
	} {
		t.Run(name, func(t *testing.T) {
			r := serving()
			if tt.join {
				r = joining()
			}
			if tt.request != nil {
				tt.request(&r)
			}
			for _, n := range r.networks {
				r.policy.Networks = append(r.policy.Networks, netip.MustParsePrefix(n))
			}
			nodes, joined := tt.nodes, tt.joined
			if nodes == nil {
				nodes = alone
			}
			got := r.policy.Decide(r.object(t), Cluster{Nodes: nodes, Ledgers: ledgers, Services: services, Joined: joined}, now)
			if got.Verdict != tt.want || !strings.Contains(got.Message, tt.why) {
				t.Errorf("decided %s %q, want %s with %q", got.Verdict, got.Message, tt.want, tt.why)
			}
			if got.Person != tt.person || (got.Verdict == Approve) != (got.Node != "") {
				t.Errorf("%+v, want it for a person: %t, and somebody to remember when approved", got, tt.person)
			}
			if (got.Verdict == Wait) != (got.After > 0) {
				t.Errorf("verdict %s with another look after %s", got.Verdict, got.After)
			}
			if got.Verdict != Ignore && got.Message == "" {
				t.Errorf("verdict %s says no reason", got.Verdict)
			}
		})
	}
}

// What a person approves is remembered when it is a request of ours, as far as it is true.
func TestByHand(t *testing.T) {
	const ours = "firkin://v1"
	nodes := []corev1.Node{node("mac-1", ours, "192.0.2.10", "127.0.0.1"), node("kubelet", "containerd://2.1", "192.0.2.10")}
	as := func(name string) func(*request) {
		return func(r *request) { r.user, r.subject.CommonName = userPrefix+name, userPrefix+name }
	}
	for name, tt := range map[string]struct {
		request func(*request)
		join    bool
		denied  bool
		reason  string
		at      time.Duration
		want    string
	}{
		"a disputed address":         {want: "mac-1 [192.0.2.10]"},
		"an hour ago":                {at: -time.Hour, want: "mac-1 [192.0.2.10]"},
		"by a clock that is ahead":   {at: time.Hour, want: "mac-1 [192.0.2.10]"},
		"in another form":            {request: func(r *request) { r.ips = []string{"::ffff:192.0.2.10", "127.0.0.1"} }, want: "mac-1 [192.0.2.10 127.0.0.1]"},
		"one that it no longer has":  {request: func(r *request) { r.ips = []string{"192.0.2.10", "192.0.2.11"} }, want: "mac-1 [192.0.2.10]"},
		"only that":                  {request: func(r *request) { r.ips = []string{"192.0.2.11"} }},
		"approved by the controller": {reason: Reason},
		"denied by hand":             {denied: true},
		"another kubelet's":          {request: as("kubelet")},
		"of no Node":                 {request: as("mac-3")},
		"for another node":           {request: func(r *request) { r.user = "system:node:mac-3" }},
		"of somebody else":           {request: func(r *request) { r.groups = nil }},
		"too many addresses":         {request: func(r *request) { r.ips = slices.Repeat(r.ips, 9) }},
		"not a request":              {request: func(r *request) { r.raw = []byte("hello") }},
		"another signer":             {request: func(r *request) { r.signer = "example.test/signer" }},
		"a name":                     {join: true, want: "mac-9 []"},
		"a name an hour ago":         {join: true, at: -time.Hour, want: "mac-9 []"},
		"a name by another token":    {join: true, request: func(r *request) { r.groups = nil }},
	} {
		t.Run(name, func(t *testing.T) {
			r := serving()
			if tt.join {
				r = joining()
			}
			if tt.request != nil {
				tt.request(&r)
			}
			csr := r.object(t)
			condition := certificatesv1.CertificateSigningRequestCondition{Type: certificatesv1.CertificateApproved, Reason: tt.reason, LastTransitionTime: metav1.NewTime(now.Add(tt.at))}
			want := now.Add(min(tt.at, 0)) // nothing was approved in the future
			if tt.denied {
				condition.Type = certificatesv1.CertificateDenied
			}
			csr.Status.Conditions = append(csr.Status.Conditions, condition)
			who, news := r.policy.byHand(csr, Cluster{Nodes: nodes}, now)
			got := ""
			if who != "" {
				got = fmt.Sprint(who, " ", news.Addresses)
			}
			if got != tt.want || tt.join && who != "" && (news.Key == "" || news.Since != want) || !tt.join && who != "" && news.AddressesSince != want {
				t.Errorf("remembered %q: %+v, want %q", got, news, tt.want)
			}
		})
	}
}
